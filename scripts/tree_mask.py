"""Draws docs/tree.png: the attention masks of one request and of one GRPO group, as the engine makes them.

Run it with `scripts/python scripts/tree_mask.py`. A small random model decodes a catalog of seven SIDs; the masks shown are
the ones that the model was given.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from transformers import Qwen2Config, Qwen2ForCausalLM

from minionerec.tree import Branch, CatalogTrie, beam_search, pack

NAMES = ["next:", "<a_1>", "<a_2>", "<a_3>", "<b_1>", "<b_2>", "<b_3>", "<c_1>", "<c_2>", "<c_3>"]
CATALOG = [[1, 4, 7], [1, 4, 8], [1, 5, 7], [2, 4, 9], [2, 6, 7], [2, 6, 8], [3, 5, 9]]
PROMPT = [0, 2, 6, 8]
COLOURS = ListedColormap(["#ffffff", "#c7d2e0", "#1f5fa8"])  # not seen, prompt, tree


def request(model: Qwen2ForCausalLM) -> tuple[np.ndarray, list[str], list[int]]:
    """Mask of all tokens of a beam search, the tokens' names, and where the forwards begin."""
    masks, tokens = [], []

    def keep(module: torch.nn.Module, args: tuple, arguments: dict) -> None:
        mask, ids = arguments["attention_mask"], arguments["input_ids"][0]
        masks.append(mask[0, 0] if mask.dim() == 4 else torch.ones(len(ids), len(ids)).tril().bool())
        tokens.extend(NAMES[token] for token in ids.tolist())

    hook = model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    beam_search(model, torch.tensor([PROMPT]), trie=CatalogTrie.from_codes(np.array(CATALOG)), num_beams=3)
    hook.remove()
    whole = np.zeros((len(tokens), len(tokens)), dtype=bool)
    starts = [0]
    for mask in masks:
        whole[starts[-1] : starts[-1] + len(mask), : mask.shape[1]] = mask.numpy()
        starts.append(starts[-1] + len(mask))
    return whole, tokens, starts[:-1]


def group() -> tuple[np.ndarray, list[str], list[int]]:
    """Mask of a prompt with four completions."""
    batch = pack([Branch(PROMPT, sid) for sid in (CATALOG[1], CATALOG[3], CATALOG[4], CATALOG[5])], row_tokens=1000)
    return batch.ancestors[0, 0].numpy(), [NAMES[token] for token in batch.input_ids[0].tolist()], [0, len(PROMPT)]


def draw(axes: Axes, mask: np.ndarray, names: list[str], starts: list[int], title: str) -> None:
    """One mask: a row is a token that attends, a column a token that it may see."""
    shades = mask.astype(int)
    shades[:, len(PROMPT) :] *= 2
    axes.imshow(shades, cmap=COLOURS, vmin=0, vmax=2)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, family="monospace")
    axes.set_yticks(range(len(names)), names, fontsize=8, family="monospace")
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#8a94a3", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="#b3261e", linewidth=1.5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("may see (grey: the prompt; blue: the tree)", fontsize=9)
    axes.set_ylabel("this token", fontsize=9)


def main() -> None:
    """Draw both masks side by side."""
    torch.manual_seed(1)
    sizes = {"vocab_size": len(NAMES), "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, intermediate_size=48, num_hidden_layers=2, initializer_range=0.3)).eval()
    figure = Figure(figsize=(11, 5.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    draw(left, *request(model), "One request, 3 beams: three forwards (red lines)")
    draw(right, *group(), "One GRPO group: a prompt and 4 completions, one forward")
    figure.savefig(Path(__file__).parents[1] / "docs/tree.png", dpi=110)


if __name__ == "__main__":
    main()
