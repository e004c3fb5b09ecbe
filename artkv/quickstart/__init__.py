"""The embedded world: a whole small ArtQuest made from nothing but the installed packages."""
