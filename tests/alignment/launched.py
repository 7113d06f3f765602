"""What each of two processes does: `align` under DDP, then steps of sharded weights against whole ones."""

import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL, TINY, double
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import midward.models
from midward.alignment import MosaObjective, resolve
from midward.alignment.data import SentenceCollator, SentenceSchedule, encode_prompts
from midward.alignment.run import _adapted
from midward.alignment.sentences import encode_sentences
from midward.alignment.trainer import _through, save_adapter


def by_torch(network, mesh):
    # The head is never called as a module, so a unit of its own stays in shards while the objective reads it.
    base = network.get_base_model()
    for part in (*base.model.layers, base.lm_head, network):
        fully_shard(part, mesh=mesh)


def by_accelerate(network, mesh):
    # As Trainer prepares an adapter: peft's policy makes units of the layers, and of the adapter's parts in them.
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy=fsdp_auto_wrap_policy(network),
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )
    like = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
        torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=("shard",)),
    )
    assert fsdp2_prepare_model(like, network) is network


def check(shard, dtype, checkpointing, out):
    rank = dist.get_rank()
    mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    config = resolve({**SMALL, "reveal": 0.3, "gradient_checkpointing": checkpointing})
    model = midward.models.load(TINY, device="cpu", dtype=dtype)
    harmful, calm = (encode_prompts(model, rows, config, "data") for rows in (HARMFUL, BENIGN))
    sentences = encode_sentences(model, SENTENCES, config)
    schedule = SentenceSchedule(config, harmful, calm, sentences, model.family.end_ids[0])
    collate = SentenceCollator(config, model.family, sentences.longest)
    batches = [collate([schedule[0], schedule[1]]), collate([schedule[2], schedule[3]])]
    with _adapted(model, config):
        network = model.network.train()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in trained.items():
                if "lora_B" in name:
                    p.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        objective = MosaObjective(model, config)
        assert objective.linear is not None
        losses = []
        for batch in batches:
            terms = _through(network, network, lambda batch=batch: objective(batch))
            (terms.loss / 2).backward()
            losses.append(terms.loss.item())
        expected = {name: p.grad.clone() for name, p in trained.items()}
        network.zero_grad()

        shard(network, mesh)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        assert all(isinstance(p, DTensor) for p in network.parameters())
        step = torch.optim.AdamW(trained.values(), lr=1e-4)
        terms = _through(network, network, lambda: objective(batches[rank]))
        terms.loss.backward()
        assert abs(terms.loss.item() - losses[rank]) <= 1e-5 * abs(losses[rank])
        for name, p in trained.items():
            torch.testing.assert_close(p.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-5)
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        step.step()
        after = torch.tensor(_through(network, network, lambda: objective(batches[rank])).loss.item())
        dist.all_reduce(after)
        assert after < sum(losses), (after, losses)
        folder = out / shard.__name__
        save_adapter(network, folder, write=rank == 0)
        whole = {name: p.full_tensor().detach() for name, p in trained.items()}
    dist.barrier()
    reloaded = midward.models.load(TINY, device="cpu", dtype=dtype, adapter=folder).network
    for name, p in reloaded.named_parameters():
        if "lora_" in name:
            assert torch.equal(p, whole[name])


def work(model, out):
    """In a process that a launcher has started; what fails stands in failed-RANK."""
    from test_align_run import run

    torch.set_num_threads(1)
    run(model, out / "two", max_steps=5, micro_batch=1)
    try:
        check(by_torch, torch.float32, False, out)
        check(by_accelerate, torch.bfloat16, True, out)
    except Exception:
        (out / f"failed-{dist.get_rank()}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def forked(rank, port, model, out):
    """The same in a fork, told what torchrun tells."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    AcceleratorState._reset_state(reset_partial_state=True)  # as if nothing had been trained before
    work(model, out)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    work(double(), Path(sys.argv[1]))
