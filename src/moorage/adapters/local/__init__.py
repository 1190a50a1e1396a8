"""What one machine offers by itself: the store, the clock, wake-ups and the vault."""
