import pytest
import torch

from directions.estimate import choose_layer, estimate, fit_reader, roc_area
from directions.prompts import Pair
from directions.sources import length_batches, load_source, pooled_states

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def tiny():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<s>", "<unk>", "knife", "spoon", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>"
    )


def made(count=40):
    pairs = [
        Pair(
            "violence",
            f"t{i % 8}",
            "caption",
            f"{WORDS[i % 40]} spoon {WORDS[i * 7 % 40]}",
            f"{WORDS[i % 40]} knife {WORDS[i * 7 % 40]}",
        )
        for i in range(count)
    ]
    return pairs, [" ".join(WORDS[i * k % 40] for k in (1, 3, 5)) for i in range(1, 60)]


def test_batching_does_not_change_the_states(tiny):
    prompts = ["w1", "w2 w3 w4 w5 w6 w7", "spoon w9"]
    together = pooled_states(*tiny, prompts, [2, 4])
    alone = torch.cat([pooled_states(*tiny, [prompt], [2, 4]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-5) and together.shape == (3, 2, 32)


def test_length_batches_hold_every_index_once():
    lengths = [5, 1, 9, 3, 3, 8]
    batches = list(length_batches(lengths, 10))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 10 or len(batch) == 1 for batch in batches)


def test_the_direction_is_the_mean_difference_of_the_pairs(tiny):
    pairs, anchors = made()
    direction = estimate(*tiny, pairs, anchors, layer=3)
    states = pooled_states(*tiny, [p.safe for p in pairs] + [p.unsafe for p in pairs], [3])[:, 0]
    assert torch.allclose(direction.vectors["global"], (states[:40] - states[40:]).mean(0), atol=1e-5)
    assert direction.categories == ("violence",) and direction.source["layers"] == [3]
    assert len(direction.anchor_prompts) == len(set(anchors))


def test_mentions_stand_among_the_anchors_and_change_nothing_but_the_readers(tiny):
    pairs, anchors = made()
    mentions = ["a sign against a knife w3", "the word knife w9 w4", anchors[0]]
    plain, named = estimate(*tiny, pairs, anchors, layer=3), estimate(*tiny, pairs, anchors, layer=3, mentions=mentions)
    benign = (~named.mentioned).nonzero().flatten().tolist()
    assert set(named.anchor_prompts) == {*plain.anchor_prompts, *mentions[:2]} and named.mentions == tuple(mentions[:2])
    own = named.picked(benign)
    # In bytes: the steps lie elsewhere where there are more states.
    step = (plain.anchor_states.float().amax(0) - plain.anchor_states.float().amin(0)) / 100
    assert own.anchor_prompts == plain.anchor_prompts
    assert ((own.anchor_states.float() - plain.anchor_states.float()).abs() <= step).all()
    assert torch.equal(own.token_scores, plain.token_scores) and torch.equal(own.token_counts, plain.token_counts)
    assert torch.equal(named.vectors["global"], plain.vectors["global"])
    states = named.anchor_states[named.mentioned].float()
    benign = plain.anchor_states.float()

    def found(direction):
        reader = direction.readers["global"]
        return ((states @ reader).mean() - (benign @ reader).mean()) / (benign @ reader).std()

    assert found(named) < found(plain)


def test_the_same_input_gives_the_same_bits(tiny):
    pairs, anchors = made()
    assert estimate(*tiny, pairs, anchors).fingerprint == estimate(*tiny, pairs, anchors).fingerprint


def test_several_layers_are_concatenated(tiny):
    direction = estimate(*tiny, *made(), layer=[1, 3])
    assert direction.width == 64 and direction.vectors["global"].shape == (64,)


def test_layer_is_chosen_by_unseen_themes():
    pairs, _ = made()
    noise = torch.randn(20 + 80, 3, 8, generator=torch.Generator().manual_seed(0))
    noise[60:, 1, 0] += 9
    assert choose_layer(noise, pairs, 20) == 1


def test_reader_separates_and_area_counts():
    benign, unsafe = torch.randn(200, 6), torch.randn(100, 6) + torch.tensor([4.0, 0, 0, 0, 0, 0])
    reader = fit_reader(benign, unsafe)
    assert roc_area(benign @ reader, unsafe @ reader) > 0.98
    assert roc_area(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])) == pytest.approx(0.875)


def test_a_killed_run_goes_on_where_it_was(tiny, tmp_path):
    model, tokenizer = tiny
    prompts, read = [f"w{i} knife w{i + 1}" for i in range(12)], []

    def killed(items, total, label):
        for index, item in enumerate(items):
            if index == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        pooled_states(model, tokenizer, prompts, [2], 8, killed, tmp_path)
    hook = model.model.register_forward_pre_hook(lambda module, args: read.append(1))
    states = pooled_states(model, tokenizer, prompts, [2], 8, keep=tmp_path)
    hook.remove()
    assert len(read) == 6 - 2 and torch.equal(states, pooled_states(model, tokenizer, prompts, [2], 8))


def test_a_model_split_between_memory_and_disk_gives_the_same_states(tiny, tmp_path):
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", **{f"model.layers.{i}": "disk" for i in (1, 2, 3)}}
    split, _ = load_source(
        tmp_path / "model",
        {**parts, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
        tmp_path / "offload",
    )
    assert next(split.model.layers[2].parameters()).device.type == "meta"
    prompts = ["w1 w2 knife", "spoon w5"]
    assert torch.allclose(
        pooled_states(split, tokenizer, prompts, [1, 4]), pooled_states(model, tokenizer, prompts, [1, 4]), atol=1e-5
    )


def test_wrong_input_is_named(tiny, tmp_path):
    pairs, anchors = made()
    with pytest.raises(ValueError, match="layers 0 .embedding. to 4"):
        estimate(*tiny, pairs, anchors, layer=9)
    with pytest.raises(ValueError, match="3 pairs"):
        estimate(*tiny, pairs[:3], anchors)
    with pytest.raises(ValueError, match="has no tokens"):
        estimate(*tiny, pairs, [*anchors, ""])
    with pytest.raises(FileNotFoundError, match="no source model at"):
        load_source(tmp_path / "nothing")
