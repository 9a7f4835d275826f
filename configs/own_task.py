"""A task of your own: problems, and what a completion is worth. own.yaml names it as task.py:reward."""

train = [
    {"prompt": "What is the capital of France?", "answer": "Paris"},
    {"prompt": "What is 3 + 5?", "answer": "8"},
]
evaluation = [
    {"prompt": "What is the capital of Italy?", "answer": "Rome"},
    {"prompt": "What is 12 * 7?", "answer": "84"},
]


def reward(completion, example):
    """Return what a completion is worth: the higher, the better. It runs in a process of its own."""
    right = example["answer"] in completion
    return {"reward": right - 0.001 * len(completion), "correct": right, "length": len(completion)}
