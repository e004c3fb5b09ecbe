"""Frozen features on disk: computed once for each distinct picture, read in place of running the encoders."""

from artkv.feature_cache.preparation import (
    CachedTables,
    CacheSettings,
    cache_settings,
    decoded_before,
    find_cache_problems,
    prepare_features,
    verify_store,
)

__all__ = [
    "CacheSettings",
    "CachedTables",
    "cache_settings",
    "decoded_before",
    "find_cache_problems",
    "prepare_features",
    "verify_store",
]
