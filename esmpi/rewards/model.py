"""A reward model of transformers as a reward."""

from collections.abc import Sequence
from typing import Any

from esmpi.data.problem import Prompt
from esmpi.errors import UserError, said


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
        Type of the weights, such as "bfloat16".
    num_threads : int
        CPU threads of the model. With another number, or on another device, scores may differ in their last bits.
    **keys
        For `AutoModelForSequenceClassification.from_pretrained`, such as `revision`.

    Raises
    ------
    UserError
        If the keys have another number of labels.
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
        if "num_labels" in keys:
            raise UserError("reward_model: num_labels: a reward model has one label, so leave this out")
        self._path, self._batch_size, self._max_length = path, batch_size, max_length
        self._device, self._dtype, self._num_threads, self._keys = device, dtype, num_threads, keys
        self._model: Any = None
        self._tokenizer: Any = None

    def prepare(self) -> None:
        """Load the model: before the first completion, whose time limit this must not count for.

        Raises
        ------
        UserError
            If it cannot be loaded, or is no reward model.
        """
        try:
            self._load()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"reward_model: {self._path} cannot be loaded: {said(error)}") from error

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        dtype = getattr(torch, self._dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"reward_model: dtype: torch has no type {self._dtype!r}")
        torch.set_num_threads(self._num_threads)
        tokenizer_keys = {name: self._keys[name] for name in ("revision", "trust_remote_code") if name in self._keys}
        self._tokenizer = AutoTokenizer.from_pretrained(self._path, **tokenizer_keys)
        keys = {**self._keys, "num_labels": 1, "dtype": dtype, "output_loading_info": True}
        model, loaded = AutoModelForSequenceClassification.from_pretrained(self._path, **keys)
        if missing := sorted(loaded["missing_keys"]):  # these weights are random, and different in each process
            raise UserError(
                f"reward_model: {self._path} is no reward model: it lacks the weights {', '.join(missing[:3])}"
            )
        self._model = model.to(self._device).eval()
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
