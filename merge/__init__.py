"""Recipes that would merge a mixture of experts, read as if the merged checkpoint were there."""
