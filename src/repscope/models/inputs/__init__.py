"""What users hand in: prompts with named spans, chats, token ids; each checked in one sentence."""
