"""Frozen features on disk: computed once for each distinct picture, read in place of running the encoders."""

from artkv.feature_cache.preparation import (
    CachedTables,
    CacheSettings,
    check_cache,
    decoded_before,
    prepare_features,
    verify_store,
)

__all__ = ["CacheSettings", "CachedTables", "check_cache", "decoded_before", "prepare_features", "verify_store"]
