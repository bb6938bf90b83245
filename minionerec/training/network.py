"""What the machines of a training exchange in a step, estimated before the first one.

Bytes that one machine sends in an optimiser step, and receives: both directions of its link carry as much. N is the number of
processes on all machines, S the bytes of what is exchanged. Rings pass over the link of each machine once, so it carries what
one process sends:

- An all-reduce of S bytes sends 2 S (N - 1) / N (Patarasuk and Yuan, 2009, section 2); a reduce-scatter or an all-gather half
  of it.
- DDP sums the gradients once in a step, however many micro-batches it has: one all-reduce, S = wT, w bytes of each of T
  gradients.
- ZeRO-2 sums the gradients in every micro-batch, S = wT each time, and gathers the new weights once, S = wT. In bf16 w is 2.
  A reduce-scatter would do for the sums (Rajbhandari et al., 2020, section 7.2), but DeepSpeed all-reduces them by default
  (`use_multi_rank_bucket_allreduce`).

The seconds are bytes over the speed of the link. Training hides a part of the exchange behind the backward pass, and small
messages take longer than their bytes; neither is counted. benchmarks/network.py compares these bytes with measured ones.
"""

from minionerec.training.plan import Plan, gigabytes, gradient_bytes


def exchanged(plan: Plan) -> dict[str, int]:
    """Bytes that a process, or a machine, sends in an optimiser step, by what they are."""
    devices = plan.devices
    passed = gradient_bytes(plan.shape, devices) * (devices.count - 1) // devices.count
    if devices.zero2:
        return {"gradients": 2 * passed * plan.work.accumulation, "weights": passed}
    return {"gradients": 2 * passed}


def seconds(plan: Plan, gbit: float) -> float:
    """Seconds per optimiser step that a machine's link of `gbit` Gbit/s in each direction is busy."""
    return sum(exchanged(plan).values()) * 8 / (gbit * 1e9)


def rows(plan: Plan, machines: int, gbit: float | None) -> list[tuple[str, str]]:
    """Names and values for the table of a plan for several machines."""
    each = f" ({machines} machines x {plan.devices.count // machines} devices)"
    table = [(f"each machine sends per step: {name}", gigabytes(size)) for name, size in exchanged(plan).items()]
    table[0] = (table[0][0], table[0][1] + each)
    if gbit is not None:
        table.append((f"link of {gbit:g} Gbit/s is busy per step (estimate)", f"{seconds(plan, gbit):.3g} s"))
    return table
