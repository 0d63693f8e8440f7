"""Forgetting users, and masking what events say of them."""
