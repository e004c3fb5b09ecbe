"""The small language model: an OPT that answers a question from a caption placed before it.

The caption stands where the visual tokens will: `NUM_QUERY_TOKENS` positions before `</s>` and the
question. Its words come in any order, at any of these positions, some of them twice and with filler
between, so that the model looks for a word of the kind that the question asks for, wherever it is.
It learns every answer there is, styles included: later it can name what visual tokens tell it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from artkv.config import DatasetConfig
from artkv.errors import RunFailed
from artkv.quickstart.questions import ANSWERS, STYLE_WORDING, Wording
from artkv.quickstart.tokenizer import train_tokenizer

NUM_QUERY_TOKENS = 16

_FILLERS = (" a", " painting", " of", " in", " this", " is", " it", " the")
STEPS = 160
_BATCH = 64
NUM_HELD_OUT = 256
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 40
# Noise on the caption's embeddings, relative to their size: visual tokens are never exactly words.
_EMBEDDING_NOISE = 0.3
# Below this share of right answers from fresh captions the later stages would have nothing to stand on.
NEEDED_ACCURACY = 0.98


def train_world_tokenizer(wording: Wording = STYLE_WORDING) -> PreTrainedTokenizerFast:
    """The tokenizer of an embedded world, trained on all that is ever asked and answered in it."""
    prompt = DatasetConfig().prompt
    return train_tokenizer(
        f"{prompt.format(question=question)} {answer}\n"
        for question_type, phrasings in wording.phrasings.items()
        for question in phrasings
        for answer in wording.answers[question_type]
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token that must be in the vocabulary."""
    return tokenizer.get_vocab()[token]


@dataclass(frozen=True)
class Conversation:
    """Questions with their answers as tokens, right-padded; rows are questions (R), columns tokens (T)."""

    tokens_QT: Tensor
    mask_QT: Tensor  # 1 where there is a token
    labels_QT: Tensor  # the answer's tokens and the newline after them; -100 elsewhere


class Phrasebook:
    """The tokens of each question and answer, in the format that artkv trains and evaluates on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, wording: Wording = STYLE_WORDING) -> None:
        prompt = DatasetConfig().prompt
        self.pad_id = token_id(tokenizer, "<pad>")
        self.prompts: dict[str, list[list[int]]] = {
            question_type: [tokenizer(prompt.format(question=question))["input_ids"] for question in phrasings]
            for question_type, phrasings in wording.phrasings.items()
        }
        self.answers: dict[str, list[int]] = {
            answer: tokenizer(f" {answer}\n", add_special_tokens=False)["input_ids"]
            for answers in wording.answers.values()
            for answer in answers
        }
        self.newline_id = int(tokenizer("\n", add_special_tokens=False)["input_ids"][0])
        self.fillers: list[int] = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in _FILLERS]

    def converse(self, asked: list[tuple[str, str]], rng: np.random.Generator) -> Conversation:
        """Tokens for (question type, answer) pairs, each question in a phrasing drawn by `rng`."""
        prompts = [self.prompts[kind][rng.integers(len(self.prompts[kind]))] for kind, _ in asked]
        answers = [self.answers[answer] for _, answer in asked]
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        tokens = np.full((len(asked), longest), self.pad_id, np.int64)
        mask = np.zeros_like(tokens)
        labels = np.full_like(tokens, -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            tokens[row, :end] = prompt + answer
            mask[row, :end] = 1
            labels[row, len(prompt) : end] = answer
        return Conversation(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(labels))

    def caption(self, attributes: dict[str, str], rng: np.random.Generator) -> NDArray[np.int64]:
        """`NUM_QUERY_TOKENS` tokens that tell the attributes, in any order, among filler and repetitions."""
        words = [self.answers[answer][:-1] for answer in attributes.values()]
        spare = NUM_QUERY_TOKENS - sum(len(word) for word in words)
        while spare > 0:
            word = words[rng.integers(len(attributes))] if rng.random() < 0.4 else []
            if not 0 < len(word) <= spare:
                word = [self.fillers[rng.integers(len(self.fillers))]]
            words.append(word)
            spare -= len(word)
        order = rng.permutation(len(words))
        return np.asarray([token for index in order for token in words[index]], np.int64)


def answer_loss(language_model: OPTForCausalLM, visual_QKD: Tensor, conversation: Conversation) -> Tensor:
    """Mean cross-entropy of the answers' tokens, with `visual_QKD` placed before each question."""
    logits_AO, labels_A = answer_logits(language_model, visual_QKD, conversation)
    return torch.nn.functional.cross_entropy(logits_AO, labels_A)


def answer_logits(
    language_model: OPTForCausalLM, visual_QKD: Tensor, conversation: Conversation
) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) that predict the N answer tokens of all rows, and these tokens (N)."""
    embedded = language_model.get_input_embeddings()(conversation.tokens_QT)
    num_visual = visual_QKD.shape[1]
    hidden_QSD = language_model.model(
        inputs_embeds=torch.cat([visual_QKD, embedded], dim=1),
        attention_mask=torch.cat([conversation.mask_QT.new_ones(visual_QKD.shape[:2]), conversation.mask_QT], dim=1),
        use_cache=False,
    ).last_hidden_state
    is_answer = conversation.labels_QT != -100
    # The token at text position t is predicted one position earlier.
    before_QTD = hidden_QSD[:, num_visual - 1 : -1]
    return language_model.lm_head(before_QTD[is_answer]), conversation.labels_QT[is_answer]


def share_answered_right(language_model: OPTForCausalLM, visual_QKD: Tensor, conversation: Conversation) -> float:
    """The share of answers of which each token, the newline too, would be said (exact match)."""
    logits_AO, labels_A = answer_logits(language_model, visual_QKD, conversation)
    question_A = (conversation.labels_QT != -100).nonzero()[:, 0]
    wrong = question_A[logits_AO.argmax(-1) != labels_A].unique()
    return 1 - len(wrong) / len(conversation.labels_QT)


@dataclass(frozen=True)
class Lesson:
    """What the language model is taught.

    batch: takes (model, phrasebook, size, noise, rng), gives the embeddings of `size` captions, (size,
    `NUM_QUERY_TOKENS`, width), with relative `noise`, and a question about each. steps: of the training. learning_rate:
    AdamW's, at its highest.
    """

    wording: Wording
    batch: Callable[[OPTForCausalLM, Phrasebook, int, float, np.random.Generator], tuple[Tensor, Conversation]]
    steps: int
    learning_rate: float = _LEARNING_RATE


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, lesson: "Lesson | None" = None
) -> OPTForCausalLM:
    """Trains the OPT on captions and questions; raises `RunFailed` if it did not learn to answer.

    lesson: what is asked of which captions; None for the world of styles.
    """
    lesson = lesson or Lesson(STYLE_WORDING, _captioned_batch, STEPS)
    phrasebook = Phrasebook(tokenizer, lesson.wording)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OPTForCausalLM(_opt_config(len(tokenizer))).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.learning_rate, weight_decay=0.01)
        schedule = warmup_then_cosine(optimizer, _WARMUP_STEPS, lesson.steps)
        progress = tqdm(range(lesson.steps), desc="language model", unit="step", disable=None)
        for step in progress:
            loss = answer_loss(model, *lesson.batch(model, phrasebook, _BATCH, _EMBEDDING_NOISE, rng))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
        model.eval()
        with torch.no_grad():
            asked = lesson.batch(model, phrasebook, NUM_HELD_OUT, 0.0, rng)
            accuracy = share_answered_right(model, *asked)
    if accuracy < NEEDED_ACCURACY:
        raise RunFailed(
            f"the embedded world's language model answers {accuracy:.1%} of captioned questions, "
            f"{NEEDED_ACCURACY:.0%} are needed; run quickstart again with another --seed"
        )
    return model


def warmup_then_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that rises linearly for `warmup_steps` and falls to zero as a cosine."""

    def factor(step: int) -> float:
        decay = 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps)))
        return float(min(1.0, (step + 1) / warmup_steps) * decay)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _opt_config(vocab_size: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
        init_std=0.04,
    )


def _captioned_batch(
    model: OPTForCausalLM, phrasebook: Phrasebook, size: int, noise: float, rng: np.random.Generator
) -> tuple[Tensor, Conversation]:
    """Embeddings of `size` random captions, with relative `noise`, and one question about each."""
    captions, asked = [], []
    kinds = list(ANSWERS)
    for _ in range(size):
        attributes = {kind: answers[rng.integers(len(answers))] for kind, answers in ANSWERS.items()}
        captions.append(phrasebook.caption(attributes, rng))
        kind = kinds[rng.integers(len(kinds))]
        asked.append((kind, attributes[kind]))
    visual = model.get_input_embeddings()(torch.from_numpy(np.stack(captions)))
    visual = visual + noise * visual.detach().std() * torch.randn_like(visual)
    return visual, phrasebook.converse(asked, rng)
