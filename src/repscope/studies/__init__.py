"""One file a question: its options, its steps, its page."""
