"""The pure heart: what a session is and what it does next. No IO, no clock, no choices of its own."""
