"""Frozen features on disk: computed once for each distinct picture, read in place of running the encoders."""

from artkv.feature_cache.filling import PictureReading
from artkv.feature_cache.location import Location, choose_location, decoded_below, features_folder, features_root
from artkv.feature_cache.preparation import (
    CachedTables,
    CacheSettings,
    check_cache,
    decoded_before,
    prepare_features,
    verify_store,
)

__all__ = [
    "CacheSettings",
    "CachedTables",
    "Location",
    "PictureReading",
    "check_cache",
    "choose_location",
    "decoded_before",
    "decoded_below",
    "features_folder",
    "features_root",
    "prepare_features",
    "verify_store",
]
