"""The tasks of ``paretune weigh``, as bilevel problems."""
