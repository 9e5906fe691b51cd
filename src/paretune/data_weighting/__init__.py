"""``paretune weigh``: how much each training set should weigh, from recipe to tables."""
