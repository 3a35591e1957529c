"""Who may call whom, and how the platform runs."""
