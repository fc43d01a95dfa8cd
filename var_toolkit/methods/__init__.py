"""Methods: functions that build plans, and what they need."""
