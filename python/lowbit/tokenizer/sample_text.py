"""The built-in text for logits in a verification: prose, other scripts, code and numbers, cut to one length."""

TEXT = (
    "The ship left the harbour before dawn, and by noon nothing was to be seen of the coast but a thin grey line. "
    "\u00abWo sind wir?\u00bb, fragte der Junge. \u6d77\u306f\u9759\u304b\u3060\u3063\u305f\u3002 "
    "At 12:45 the log read 37.5 degrees north, 1024 miles from home.\n\n"
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\n"
    "Question: what is the capital of France? Answer: Paris. Once upon a time there was a king who had three daughters."
)
#: The most tokens of the text that are used.
NUM_TOKENS = 16
