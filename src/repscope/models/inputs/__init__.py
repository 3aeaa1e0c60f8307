"""User inputs and their checks: prompts with named spans, chats, token ids."""
