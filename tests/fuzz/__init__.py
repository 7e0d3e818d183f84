"""Bytes that nobody would write: what reads them answers with a value or a reason, quickly and in little memory."""
