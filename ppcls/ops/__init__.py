"""Operators that compute what Paddle's do, faster."""
