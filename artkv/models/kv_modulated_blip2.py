"""The assembled model: frozen encoders, prefix, Q-Former and OPT behind one forward.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from artkv.batch import (
    Batch,
    PackedChoices,
    PackedPrompts,
    PackedQuestions,
    PackedRows,
    PaintingFeatures,
    PaintingViews,
    QuestionBatch,
)
from artkv.kv_modulation import STOCK, Injection, LayerAttention, Modulation, Use, recorded_attention
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.cuda_graphs import GraphedTower, GraphGroup, graphs_are_wanted
from artkv.models.cuda_recorder import CudaRecorder
from artkv.models.opt.answer_gradients import AnswerGradients, decode_packed, packed_answer_losses
from artkv.models.opt.answers import answer_cross_entropy, answer_log_probabilities, hidden_at_answers
from artkv.models.opt.decoding import Decoded, DecodingLimits, decode_greedily
from artkv.models.opt.packed_sequences import packed_embeddings


class AnswerLoss(NamedTuple):
    """What a forward pass returns; both are fp32 tensors of shape () on the device.

    loss_sum: cross-entropy summed over the answer tokens of questions with weight 1. The caller divides
        by the number of answer tokens of all ranks and micro-steps.
    answer_tokens: how many tokens that sum is over.
    """

    loss_sum: Tensor
    answer_tokens: Tensor


class LikelyAnswer(NamedTuple):
    """An answer, and what the model that gave it thinks of it.

    probability: the product of its tokens' probabilities, each given what comes before it, the newline or `</s>` that
        ends it included. So that of this answer and no longer one, among all that the model could give. An answer that
        was cut off has no end, and the product is of what it has.
    token_probability: the geometric mean of these, which does not fall with the answer's length.
    """

    text: str
    probability: float
    token_probability: float


T = TypeVar("T")

# Parts of the choices whose hidden states wait for each other at a block: some 15 MB each at OPT-2.7b's width.
_CHOICES_TOGETHER = 16
# A graph is tied to a number of paintings, which beyond this is a multiple of it.
_PAINTINGS_MULTIPLE = 4


@dataclass(frozen=True)
class ModelParts:
    """The modules that compute, and that DeepSpeed must not see: in a plain record, `nn.Module` does not register them.

    DeepSpeed casts, moves, broadcasts and saves each registered parameter, and `.to()` reaches it too.
    Most of what is in them is frozen; what trains is registered by alias, in `KVModulatedBlip2.trainables`.
    """

    backbone: Blip2Backbone
    art_encoders: tuple[Callable[[Tensor], Tensor], ...]
    injection: Injection | None


class KVModulatedBlip2(nn.Module):
    """BLIP-2 with art features injected, by default as key/value prefixes; the module given to DeepSpeed.

    Registers the trainable parameters and nothing else. Frozen parts stay in eval mode whatever
    `train()` is called with, so no dropout is active and no BatchNorm buffer moves.
    """

    def __init__(self, parts: ModelParts, trainables: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.parts = parts
        # "." is not allowed in the name of a registered parameter.
        self.trainables = nn.ParameterDict({name.replace(".", "/"): trainables[name] for name in sorted(trainables)})
        backbone = parts.backbone
        before_opt = [p for name, p in trainables.items() if not name.startswith("language_model.")]
        is_graphed = graphs_are_wanted(backbone.device)
        self._graphs = GraphGroup()
        self._answer_gradients = None
        if len(before_opt) == len(trainables):
            recorder = CudaRecorder() if is_graphed and backbone.opt_stays_in_place else None
            self._answer_gradients = AnswerGradients(backbone.language_model, recorder, self._graphs)
        self._graphed_tower = None
        if is_graphed and before_opt:
            # A recorder of its own: its forward pass keeps what its backward pass needs while OPT's graph is replayed.
            self._graphed_tower = GraphedTower(
                "prefix and Q-Former", self._tower, before_opt, CudaRecorder(), self._graphs
            )

    @property
    def backbone(self) -> Blip2Backbone:
        """The frozen BLIP-2 and its tokenizer."""
        return self.parts.backbone

    @property
    def has_prefix(self) -> bool:
        """False in the control run, `kv_modulation.enabled: false`."""
        return self.parts.injection is not None

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the art encoders whose features are injected, in their order; none in the control run."""
        return () if self.parts.injection is None else tuple(source.name for source in self.parts.injection.sources)

    @property
    def num_visual_tokens(self) -> int:
        """What OPT reads of a painting as the model was trained: K, and what the injection adds."""
        return self.visual_token_count(True)

    def named_trainables(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by backend-neutral name, sorted."""
        return {name.replace("/", "."): parameter for name, parameter in self.trainables.items()}

    @torch.no_grad()
    def load_trainables(self, values: Mapping[str, Tensor]) -> None:
        """Sets every trainable from `values`, cast to the dtype it has; keys and shapes must agree."""
        parameters = self.named_trainables()
        if parameters.keys() != values.keys():
            raise ValueError(f"trainables differ: {sorted(parameters.keys() ^ values.keys())[:8]}")
        for name, parameter in parameters.items():
            if parameter.shape != values[name].shape:
                raise ValueError(f"{name}: shape {tuple(values[name].shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(values[name])

    @torch.no_grad()
    def encode(self, paintings: PaintingViews) -> PaintingFeatures:
        """The frozen encoders' features of each painting."""
        art_features = self.encode_art(paintings.art_pixels)
        return PaintingFeatures(self.backbone.encode_images(paintings.vit_pixels), art_features)

    @torch.no_grad()
    def encode_art(self, art_pixels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The features that each art encoder has of its (I, 3, E, E), (I, F) or (I, M, F); none of a control."""
        if not self.parts.art_encoders:
            return ()
        return tuple(encoder(pixels) for encoder, pixels in zip(self.parts.art_encoders, art_pixels, strict=True))

    def modulation(self, features: PaintingFeatures, use: Use = True) -> Modulation | None:
        """What is injected for each painting; None where nothing is."""
        injection = self.parts.injection
        if injection is None or not any(used := injection.used(use)):
            return None
        modulation: Modulation = injection(features.art_features, used)
        return modulation

    def visual_tokens(self, features: PaintingFeatures, use_prefix: Use = True) -> Tensor:
        """What OPT reads of each painting, (I, K, D), or more tokens where the injection adds some.

        use_prefix: False switches the injection off, a sequence switches each art encoder's part on or off.
        """
        modulation = self.modulation(features, use_prefix)
        query_output = self.backbone.query_images(features.image_features, modulation)
        return (modulation or STOCK).visual_tokens(self.backbone.project_queries(query_output))

    def visual_token_count(self, use_prefix: Use = True) -> int:
        """How many tokens `visual_tokens` gives of a painting."""
        injection = self.parts.injection
        return self.backbone.num_query_tokens + (0 if injection is None else injection.extra_tokens(use_prefix))

    @torch.no_grad()
    def cross_attention(self, features: PaintingFeatures, use_prefix: Use = True) -> list[LayerAttention]:
        """Where the query tokens look in the forward pass of `visual_tokens`, a record for each of the Z layers."""
        with recorded_attention(self.backbone.cross_attention) as recorded:
            self.visual_tokens(features, use_prefix)
        return recorded

    @property
    def prefix_gate(self) -> Tensor | None:
        """`tanh(g)`, by which what is injected is scaled, of the shape that `opened_gate` says; None without a gate."""
        gate = None if self.parts.injection is None else self.parts.injection.kv_prefix_gate
        return None if gate is None else torch.tanh(gate.detach().float())

    def forward(self, batch: Batch, only_visual: bool = False) -> AnswerLoss | Tensor:
        """The loss on the answers of `batch`: question, visual tokens and padding carry none.

        only_visual: the visual tokens, (I, K, D), and no loss: see `answer_losses`.
        """
        visual_IKD = self._graphs.rescued("the encoders", lambda: self._visual_tokens_of(batch.paintings))
        return visual_IKD if only_visual else self.answer_loss(visual_IKD, batch.questions)

    def _visual_tokens_of(self, paintings: PaintingViews | PaintingFeatures) -> Tensor:
        features = self.encode(paintings) if isinstance(paintings, PaintingViews) else paintings
        return self._trained_visual_tokens(features)

    def _trained_visual_tokens(self, features: PaintingFeatures) -> Tensor:
        """`visual_tokens`, replayed where that pays; paintings are filled up, so that few numbers of them occur."""
        if self._graphed_tower is None:
            return self.visual_tokens(features)
        inputs = [features.image_features, *features.art_features]
        num_paintings = len(features)
        filled_up = -num_paintings % _PAINTINGS_MULTIPLE if num_paintings > _PAINTINGS_MULTIPLE else 0
        if filled_up:
            inputs = [pad(tensor, (*[0, 0] * (tensor.dim() - 1), 0, filled_up)) for tensor in inputs]
        return self._graphed_tower(*inputs)[:num_paintings]

    def _tower(self, image_features: Tensor, *art_features: Tensor) -> Tensor:
        return self.visual_tokens(PaintingFeatures(image_features, art_features))

    def make_room(self) -> None:
        """Before answering amid a training: CUDA graphs go where they hold more memory than is left for it."""
        self._graphs.make_room()

    def in_room(self, answer: Callable[[], T]) -> T:
        """What `answer` returns. Where memory runs out for it beside a training's CUDA graphs these make room."""
        return self._graphs.in_room(answer)

    def rescued(self, step: Callable[[], T]) -> T:
        """What `step` returns. Where memory runs out beside CUDA graphs training goes on without any."""
        return self._graphs.rescued("a step", step)

    @property
    def records_graphs(self) -> bool:
        """Whether the second forward pass with a shape makes CUDA graphs that later ones replay."""
        return bool(self._graphs.members)

    @property
    def reads_opt_once(self) -> bool:
        """Whether several micro-batches had better go through OPT together: it streams, and nothing in it trains."""
        return self._answer_gradients is not None and "opt" in self.backbone.streamed

    def answer_losses(self, visual: Sequence[Tensor], questions: Sequence[PackedQuestions]) -> list[AnswerLoss]:
        """`answer_loss` of several micro-batches, for which each of OPT's blocks is fetched once."""
        losses = self._graphs.rescued("OPT", lambda: self._packed_losses(visual, questions))
        return [AnswerLoss(loss, one.answer_token_count()) for loss, one in zip(losses, questions, strict=True)]

    def _packed_losses(self, visual: Sequence[Tensor], questions: Sequence[PackedQuestions]) -> list[Tensor]:
        embeds = [self._packed_embeddings(visual_IKD, one) for visual_IKD, one in zip(visual, questions, strict=True)]
        if self._answer_gradients is not None and any(embeds_RLD.requires_grad for embeds_RLD in embeds):
            return self._answer_gradients.losses(embeds, questions)
        return packed_answer_losses(self.backbone.language_model, embeds, questions)

    def answer_loss(self, visual_IKD: Tensor, questions: QuestionBatch | PackedQuestions) -> AnswerLoss:
        """Summed cross-entropy of the answers, each after its `[visual tokens][BOS prompt]`; logits at answers only.

        Packed or one row a question, loss and gradients are the same to rounding.
        """
        if isinstance(questions, PackedQuestions):
            return self.answer_losses([visual_IKD], [questions])[0]
        hidden_AD = self._hidden_at_answers(visual_IKD, questions)
        ids_A = questions.labels.flatten()[questions.answer_places]
        weight_A = questions.weight[questions.answer_places // questions.labels.shape[1]]
        loss_sum = answer_cross_entropy(hidden_AD, self.backbone.language_model.lm_head, ids_A, weight_A)
        return AnswerLoss(loss_sum, questions.answer_token_count())

    def _hidden_at_answers(self, visual_IKD: Tensor, questions: QuestionBatch) -> Tensor:
        """What predicts each answer token, (A, D), with one row a question."""
        embeds_QSD, mask_QS = self._prompt_embeddings(visual_IKD, questions)
        hidden_QSD = self.backbone.language_model.model.decoder(
            inputs_embeds=embeds_QSD, attention_mask=mask_QS, use_cache=False
        ).last_hidden_state
        return hidden_at_answers(hidden_QSD, questions.answer_places, num_visual=visual_IKD.shape[1])

    def _packed_embeddings(self, visual_IKD: Tensor, rows: PackedRows) -> Tensor:
        """What OPT reads, (R, L, D), but for positions."""
        text_RLD = self.backbone.language_model.get_input_embeddings()(rows.token_ids)
        return packed_embeddings(text_RLD, visual_IKD, rows)

    def generate_with_probability(
        self, visual_IKD: Tensor, prompts: PackedPrompts, max_new_tokens: int
    ) -> list[LikelyAnswer]:
        """Greedy answers, without the question and cut at the newline, with what the model thinks of them.

        An answer also ends where OPT has no position left for it.
        """
        limits = DecodingLimits(max_new_tokens, self.backbone.max_positions)
        decoded = self._decode(visual_IKD, prompts, limits, with_probability=True)
        assert decoded.log_probabilities is not None
        log_of_all = decoded.log_probabilities.double().sum(dim=1)
        num_tokens = (decoded.token_ids != self.backbone.tokenizer.pad_token_id).sum(dim=1).clamp(min=1)
        probabilities = zip(log_of_all.exp().tolist(), (log_of_all / num_tokens).exp().tolist(), strict=True)
        texts = self.answers_of(decoded.token_ids)
        return [LikelyAnswer(text, *likely) for text, likely in zip(texts, probabilities, strict=True)]

    def generate_tokens(
        self, visual_IKD: Tensor, prompts: PackedPrompts, max_new_tokens: int, leave: int = 0, parts: int = 1
    ) -> Decoded:
        """Greedy answers as tokens, the same alone and in a batch; some may be left open, see `DecodingLimits`."""
        limits = DecodingLimits(max_new_tokens, self.backbone.max_positions, leave, parts)
        return self._decode(visual_IKD, prompts, limits, with_probability=False)

    def answers_of(self, token_ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """The texts of generated tokens, (Q, T) or T of each question, padding included."""
        answers: Sequence[str] = self.backbone.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [answer.split("\n", 1)[0].strip() for answer in answers]

    @torch.no_grad()
    def log_likelihoods(self, visual_IKD: Tensor, choices: Sequence[PackedChoices]) -> Tensor:
        """The log probability of each answer after its prompt, its newline included: (`num_answers`,), fp64.

        choices: of which one part after the other goes through each block, so that it is fetched once for some of them.
        """
        language_model = self.backbone.language_model
        found = [torch.zeros(0, dtype=torch.float64, device=visual_IKD.device)]
        for start in range(0, len(choices), _CHOICES_TOGETHER):
            some = choices[start : start + _CHOICES_TOGETHER]
            embeds = [self._packed_embeddings(visual_IKD, part) for part in some]
            for part, hidden_RCD in zip(some, decode_packed(language_model, embeds, some), strict=True):
                log_p_A = answer_log_probabilities(
                    hidden_RCD.flatten(0, 1), language_model.lm_head, part.answer_places, part.answer_ids
                ).double()
                found.append(log_p_A.new_zeros(part.num_answers).index_add_(0, part.answer_owners, log_p_A))
        return torch.cat(found)

    @torch.no_grad()
    def _decode(
        self, visual_IKD: Tensor, prompts: PackedPrompts, limits: DecodingLimits, with_probability: bool
    ) -> Decoded:
        backbone = self.backbone
        return decode_greedily(
            backbone.language_model,
            backbone.tokenizer,
            prompts,
            self._packed_embeddings(visual_IKD, prompts),
            limits,
            look_back=0 if "opt" in backbone.streamed else 1,
            with_probability=with_probability,
        )

    def _prompt_embeddings(self, visual_IKD: Tensor, questions: QuestionBatch) -> tuple[Tensor, Tensor]:
        """`[visual tokens][text]` of each question, padded on the right: (Q, S, D) and its mask (Q, S)."""
        text_QTD = self.backbone.language_model.get_input_embeddings()(questions.input_ids)
        visual_QKD = visual_IKD[questions.painting_index].to(text_QTD.dtype)
        visual_mask_QK = questions.attention_mask.new_ones(visual_QKD.shape[:2])
        embeds_QSD = torch.cat([visual_QKD, text_QTD], dim=1)
        return embeds_QSD, torch.cat([visual_mask_QK, questions.attention_mask], dim=1)
