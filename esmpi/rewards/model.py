"""A reward model of transformers as a reward."""

from collections.abc import Sequence
from typing import Any

from esmpi.data.problem import Prompt


class RewardModel:
    """Gives each completion the score of a model for sequence classification with one label.

    An object of this class is a reward function over lists. Each process that computes rewards loads the model, so
    `scoring.memory_gib` must have room for it.

    Parameters
    ----------
    path : str
        A model folder or a hub id.
    batch_size : int
        Completions that the model gets at once. They are padded to the longest.
    max_length : int, optional
        Tokens of a prompt with its completion, from the left; the rest is cut off. By default all.
    device : str
    dtype : str
        Type of the weights.
    num_threads : int
        CPU threads of the model. With another number, or on another device, scores may differ in their last bits.
    **keys
        For `AutoModelForSequenceClassification.from_pretrained`, such as `revision`.
    """

    __name__ = "reward_model"

    def __init__(
        self,
        path: str,
        batch_size: int = 8,
        max_length: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        num_threads: int = 1,
        **keys: Any,
    ):
        self._path, self._batch_size, self._max_length = path, batch_size, max_length
        self._device, self._dtype, self._num_threads, self._keys = device, dtype, num_threads, keys
        self._model: Any = None
        self._tokenizer: Any = None

    def prepare(self) -> None:
        """Load the model: before the first completion, whose time limit this must not count for."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(self._num_threads)
        tokenizer_keys = {name: self._keys[name] for name in ("revision", "trust_remote_code") if name in self._keys}
        self._tokenizer = AutoTokenizer.from_pretrained(self._path, **tokenizer_keys)
        keys = {"num_labels": 1, "dtype": getattr(torch, self._dtype), **self._keys}
        self._model = AutoModelForSequenceClassification.from_pretrained(self._path, **keys).to(self._device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._model.config.pad_token_id is None:  # by which the model finds a text's last token
            self._model.config.pad_token_id = self._tokenizer.pad_token_id

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any]) -> list[float]:
        """Return the score of each completion after its prompt: texts, or messages in the model's chat template."""
        import torch

        if self._model is None:
            self.prepare()
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        for start in range(0, len(texts), self._batch_size):
            inputs = self._tokenizer(
                texts[start : start + self._batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                truncation=self._max_length is not None,
                max_length=self._max_length,
                add_special_tokens=False,
            ).to(self._device)
            with torch.inference_mode():
                scores += self._model(**inputs).logits[:, 0].float().tolist()
        return scores

    def _text(self, prompt: Prompt, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + str(completion)
        return str(self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
