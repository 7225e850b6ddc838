"""What is true, collected once, read-only, as JSON. Collectors are the only readers of the machine.

One dataclass a section, one module of the same name a collector (:mod:`bootstrap.facts.collect` runs them). Sizes are
bytes. ``None`` means that the value could not be read. A section that could not be collected at all keeps its defaults
and has the reason in :attr:`Facts.errors`; checks that read it become ``unknown`` without being asked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bootstrap.versions import minor

FACTS_VERSION = 1


@dataclass(frozen=True)
class Interpreter:
    """A Python that an environment could be made from. ``version`` is ``3.12.1``-like."""

    path: str
    version: str


@dataclass(frozen=True)
class Torch:
    """The installed torch, read from its files: ``cuda`` is the CUDA it was built for (empty: CPU only).

    ``cxx11_abi`` is the C++ library ABI it was built with, which extensions must share.
    """

    version: str
    cuda: str = ""
    cxx11_abi: bool | None = None
    folder: str = ""


@dataclass(frozen=True)
class Base:
    """A Python of the user's that an environment may adopt, with what it says itself.

    ``kind`` is ``venv``, ``conda`` or ``plain``, ``folders`` are its own site-packages, ``torch`` is what it would
    import. ``system_site``: it also shows the packages of the Python it was made from. ``user_torch``: only the user's
    own site-packages have a torch.
    """

    path: str
    version: str
    prefix: str
    kind: str
    folders: tuple[str, ...] = ()
    torch: Torch | None = None
    system_site: bool = False
    user_torch: bool = False


@dataclass(frozen=True)
class Disk:
    """The file system that holds ``path`` (which need not exist yet: then it is its nearest parent's).

    ``kind`` is the file system's type as in ``/proc/mounts``; ``noexec`` is true where no program may be run from it.
    ``absent``: it must be there, and is not. ``obstacle`` is what stands in place of it, or of a folder above it, and
    is no folder.
    """

    path: str
    free: int | None = None
    total: int | None = None
    inodes_free: int | None = None
    noexec: bool | None = None
    writable: bool | None = None
    kind: str = ""
    absent: bool = False
    obstacle: str = ""


@dataclass(frozen=True)
class MachineFacts:
    """The machine without its GPUs and programs.

    ``disks`` has ``workspace``, ``tmp`` (``TMPDIR``), ``home`` and ``shm`` (``/dev/shm``). ``limits`` are soft limits
    of this process: ``open_files``, ``processes``, ``memlock`` (bytes), each also as ``hard_…``, and ``pids``, the
    processes its cgroup allows; -1 is unlimited. Memory is what a cgroup leaves. ``encoding`` is the locale's.
    ``scheduler`` is ``slurm``, ``sge``, ``pbs`` or empty: the one whose commands or job are here. ``variables`` are
    the environment variables that checks look at; none of them holds a secret (:mod:`bootstrap.facts.machine`).
    ``container`` names the kind of container this runs in, if any. ``bases`` are the Pythons that the shell offers,
    the active one first, up to the first that can be adopted; only for a profile that adopts one.
    """

    system: str = ""
    machine: str = ""
    libc: str = ""
    cpu: str = ""
    cores: int | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    disks: dict[str, Disk] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    encoding: str = ""
    scheduler: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    interpreters: tuple[Interpreter, ...] = ()
    bases: tuple[Base, ...] = ()
    container: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``capability`` is ``8.9``-like; ``ecc_errors`` are uncorrected ones since the last boot.

    ``throttled`` are the reasons NVML gives for a reduced clock that mean trouble (heat, power brake). ``processes``
    are those that compute on it, ``4711 (python train.py)``-like; ``None``: NVML does not say.
    """

    name: str
    capability: str = ""
    memory: int | None = None
    memory_free: int | None = None
    ecc_errors: int | None = None
    throttled: tuple[str, ...] = ()
    processes: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class GpuFacts:
    """The NVIDIA driver and its GPUs.

    ``source`` says who answered: ``nvml``, ``proc`` (the kernel module's files) or empty: no driver. ``cuda`` is the
    newest CUDA that the driver runs, ``12.2``-like. ``problem`` is why NVML did not answer where a driver is loaded.
    """

    source: str = ""
    driver: str = ""
    cuda: str = ""
    devices: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Program:
    """A program found: where, and the version it gives (empty: it gave none)."""

    path: str
    version: str = ""


@dataclass(frozen=True)
class ToolsFacts:
    """Programs and headers that builds need.

    ``path`` is the search path a stage or build gets: the environment's ``bin`` first, then ``PATH``; ``programs`` are
    the first found on it (``make``, ``git``, ``ninja``, ``gcc``, ``g++``, ``nvcc``, ``python3-config``, …), only what
    was found. ``user_nvcc`` is the first nvcc on the user's own ``PATH``, ``cuda_home`` the value of ``CUDA_HOME``
    with the nvcc in it. ``headers`` and ``libraries`` map a name (``libaio.h``, ``libaio``) to the file found, or to
    an empty text; ``looked_in`` are the folders searched.
    """

    path: tuple[str, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
    user_nvcc: Program | None = None
    cuda_home: Program | None = None
    headers: dict[str, str] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    looked_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkFacts:
    """Interfaces with their state (``up`` or ``down``), and whether the master port can be bound here.

    ``adapters`` are the RDMA adapters (``mlx5_0``), which ``NCCL_IB_HCA`` names. ``port_owner`` is ``4711 (python
    train.py)``-like, empty where it may not be seen.
    """

    interfaces: dict[str, str] = field(default_factory=dict)
    adapters: tuple[str, ...] | None = None
    port: int = 0
    port_free: bool | None = None
    port_owner: str = ""


@dataclass(frozen=True)
class Hook:
    """A file in ``etc/conda/activate.d`` or ``deactivate.d`` of the environment; ``name`` is ``activate.d/x.sh``.

    ``text`` is empty for files that are not of Step 0 (they may hold secrets), and ``None`` if it could not be read.
    """

    name: str
    text: str | None
    executable: bool


@dataclass(frozen=True)
class CondaFacts:
    """Miniconda and what conda knows of the environment.

    ``prefix`` is the installation (``looked_in`` says where it was searched), ``version`` its own, ``shell_hook``
    whether ``etc/profile.d/conda.sh`` is there, without which a batch shell has no ``conda activate``. ``packages``
    maps the environment's conda packages to ``version=build``, read from the file names in ``conda-meta``.

    ``solution`` is what setup resolved for the environment, in the same form (empty: nothing, as where conda itself
    made it). ``solution_locked``: the profile's lock says so, else it was solved from exact specs.
    ``solution_stale``: the profile or its lock has changed since.
    """

    prefix: str = ""
    version: str = ""
    shell_hook: bool | None = None
    looked_in: tuple[str, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    solution: dict[str, str] = field(default_factory=dict)
    solution_locked: bool = False
    solution_stale: bool = False


@dataclass(frozen=True)
class Dist:
    """An installed distribution. ``whole`` is false when pip was interrupted while it copied it.

    ``requires`` are its requirements without those of extras.
    """

    version: str
    whole: bool = True
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deepspeed:
    """What DeepSpeed's own build recorded (``git_version_info_installed.py``).

    ``installed`` and ``compatible`` map an op's name to a flag; ``torch`` and ``cuda`` are the versions it was built
    with; ``libraries`` are the built files under ``deepspeed/ops``.
    """

    version: str
    installed: dict[str, bool] = field(default_factory=dict)
    compatible: dict[str, bool] = field(default_factory=dict)
    torch: str = ""
    cuda: str = ""
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class EnvFacts:
    """The environment, read by one child of its own Python. ``state``: ``absent``, ``broken`` or ``ready``.

    ``kind`` is ``venv``, ``conda`` or ``plain``; ``prefix`` what ``sys.prefix`` says. ``extensions`` maps a top-level
    compiled module to its files in site-packages (``apex_C`` → ``…/apex_C.cpython-39-x86_64-linux-gnu.so``).
    ``user_site`` is the user's site-packages if this Python would use it, with the distributions in ``user_dists``.
    ``foreign_paths`` are folders that ``.pth`` files or ``sitecustomize`` put on ``sys.path`` from outside,
    ``foreign_first`` those of them that come before site-packages, ``foreign_sources`` the file that puts each there,
    where it was found, ``shadows`` modules lying in site-packages under a package's name although no distribution owns
    them, ``pip_python`` the interpreter in the first line of ``bin/pip``. ``base`` is the Python whose packages it
    adopts, if it does, and ``adopted`` are the distributions that come from there.
    """

    path: str
    state: str
    kind: str = ""
    python: str = ""
    prefix: str = ""
    version: str = ""
    extension_suffix: str = ""
    include: str = ""
    has_headers: bool | None = None
    has_pip: bool = False
    pip_python: str = ""
    base: str = ""
    adopted: tuple[str, ...] = ()
    dists: dict[str, Dist] = field(default_factory=dict)
    torch: Torch | None = None
    deepspeed: Deepspeed | None = None
    extensions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    user_site: str = ""
    user_dists: dict[str, str] = field(default_factory=dict)
    foreign_paths: tuple[str, ...] = ()
    foreign_first: tuple[str, ...] = ()
    foreign_sources: dict[str, str] = field(default_factory=dict)
    shadows: tuple[str, ...] = ()
    error: str = ""

    @property
    def minor(self) -> str:
        """The Python's major and minor version, ``3.9``-like."""
        return minor(self.version)

    @property
    def interpreter(self) -> str:
        """The Python to call: the one that answered, else where it has to be."""
        return self.python or f"{self.path}/bin/python"


@dataclass(frozen=True)
class Binary:
    """A shared library, read as ELF. ``abi`` is ``cxx11`` or ``old`` by the C++ symbols it wants (empty: none).

    ``needed`` are its ``DT_NEEDED`` names. ``provides`` is the newest ``GLIBCXX_`` version it defines.
    """

    needed: tuple[str, ...] = ()
    abi: str = ""
    provides: str = ""
    error: str = ""


@dataclass(frozen=True)
class BinariesFacts:
    """Shared libraries that other things must fit: by path. ``libstdcxx`` is the one that loads in the environment."""

    files: dict[str, Binary] = field(default_factory=dict)
    libstdcxx: str = ""


@dataclass(frozen=True)
class Checkout:
    """A git checkout. ``state``: ``absent``, ``foreign`` (no checkout of its own), ``partial`` or ``ready``.

    ``tag_commit`` is what the profile's tag points to here (empty: no such tag), ``changed`` the tracked files that
    differ from the commit, ``error`` what git said.
    """

    path: str
    state: str
    head: str = ""
    tag_commit: str = ""
    changed: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class SourcesFacts:
    """The profile's checkouts, by name."""

    checkouts: dict[str, Checkout] = field(default_factory=dict)


@dataclass(frozen=True)
class Lock:
    """A build lock: who holds it open (``owners``) and who waits for it or builds there (``waiters``), as process ids.

    ``elsewhere`` is true where others could hold it unseen (other hosts on shared storage, or another user, whose lock
    it is): then its being free cannot be known.
    """

    path: str
    age_s: float = 0.0
    owners: tuple[int, ...] = ()
    waiters: tuple[int, ...] = ()
    elsewhere: bool = False


@dataclass(frozen=True)
class Helpers:
    """``megatron/data``: the compiled helpers there, and what ``make`` would call them.

    ``files`` are all ``helpers*.so`` and a suffixless ``helpers``. ``loads`` is empty if the file that this Python
    takes can be loaded, else the error; ``stale`` is true if ``helpers.cpp`` is newer. ``make_suffix`` is the suffix by
    the first ``python3-config`` on the search path (empty: none there), ``makefile_edited`` whether the Makefile
    names its suffix another way.
    """

    folder: str
    files: tuple[str, ...] = ()
    loads: str = ""
    stale: bool = False
    make_suffix: str = ""
    makefile_edited: bool = False


@dataclass(frozen=True)
class KernelBuild:
    """A folder in which torch builds an extension at run time: Megatron's fused kernels, or one of torch_extensions.

    ``built`` are its finished libraries. ``stamp`` is for what they were built, where it can be told: ``torch``,
    ``cuda``, ``archs`` (``80,86+PTX``), ``python``; from our stamp, else from ``build.ninja``, which tells no ``torch``
    but ``include``, the folder of its headers. ``error`` is why the folder could not be looked at.
    """

    path: str
    built: tuple[str, ...] = ()
    lock: Lock | None = None
    stamp: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class BuildsFacts:
    """What is built in place. ``torch_extensions`` are the folders below its root that hold a build."""

    helpers: Helpers | None = None
    fused_kernels: KernelBuild | None = None
    torch_extensions: tuple[KernelBuild, ...] = ()
    torch_extensions_root: str = ""


@dataclass(frozen=True)
class Login:
    """Where a login was found: ``variable`` or ``file`` with its ``mode`` (octal digits); never the login itself."""

    source: str = ""
    path: str = ""
    mode: str = ""


@dataclass(frozen=True)
class AccessFacts:
    """Logins. ``wandb_mode`` is ``WANDB_MODE``, ``hub_offline`` whether ``HF_HUB_OFFLINE`` is set.

    ``looked_in`` are the places of a Hugging Face login, ``wandb_looked_in`` those of one for W&B.
    """

    huggingface: Login = Login()
    wandb: Login = Login()
    wandb_mode: str = ""
    looked_in: tuple[str, ...] = ()
    wandb_looked_in: tuple[str, ...] = ()
    hub_offline: bool = False


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus of a recipe. ``problems`` are what is wrong with its ``.bin`` and ``.idx``, a sentence each.

    ``tokenizer_matches`` is false if the tokenizer that made it is another one now. ``tokenizer`` is that file,
    ``missing_inputs`` are the files it was made from that are gone. ``standard`` is true if ``ucllm train corpus
    --recipe RECIPE`` alone would make the same. ``error`` is why the files could not be looked at.
    """

    recipe: str
    prefix: str
    home: str
    problems: tuple[str, ...] = ()
    tokenizer_matches: bool | None = None
    tokenizer: str = ""
    missing_inputs: tuple[str, ...] = ()
    standard: bool = False
    error: str = ""


@dataclass(frozen=True)
class Recipe:
    """The recipe in force, in the numbers that must fit each other and the machine."""

    name: str
    engine: str = ""
    global_batch: int = 0
    micro_batch: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpus: int = 1
    heads: int = 0
    layers: int = 0
    sequence: int = 0
    memory: int = 0
    disk: int = 0


@dataclass(frozen=True)
class DataFacts:
    """Corpora in the workspace and the recipe. ``recipe_error`` is why the recipe could not be read."""

    corpora: tuple[Corpus, ...] = ()
    recipe: Recipe | None = None
    recipe_error: str = ""


@dataclass(frozen=True)
class DeepFacts:
    """What ``--deep`` reads. ``imports`` maps a module to its error (empty: it imports).

    ``changed`` maps a distribution to its files whose hash is not the recorded one, ``missing`` to those that are gone;
    ``unread`` says which could not be read and why, ``checked`` how many were compared (``None``: nobody answered).
    ``conda_changed`` maps a conda package to its files that are altered or gone, ``conda_checked`` is as ``checked``.
    ``device_code`` maps a built library to the GPU architectures it has code for (``sm_80``, ``compute_90``; empty: it
    cannot be read); one without any device code is left out.
    """

    imports: dict[str, str] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    checked: int | None = None
    conda_changed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conda_checked: int | None = None
    device_code: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SmokeFacts:
    """A two-step training. ``error`` is empty if it went through."""

    engine: str = ""
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    error: str = ""
    log: str = ""


@dataclass(frozen=True)
class JournalFacts:
    """What setup noted: for each requirement it made, what it was last made from."""

    inputs: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeFacts:
    """One node of a job that is meant to run ``slots`` processes, as it answered itself.

    ``state`` is ``ready``, or why the rest is empty, with what was said in ``error``: ``unreachable`` (ssh or srun did
    not get there), ``silent`` (no answer in time), ``mute`` (it said something else, as where ucllm is not installed).
    ``env`` is the environment's state, as :attr:`EnvFacts.state`; ``versions`` are those of Python, torch's CUDA,
    every distribution and ucllm, and the commits of the checkouts. ``disk`` is what the workspace's path means there,
    ``shared`` whether a file just written into the workspace here was seen there (``None``: it could not be written).
    ``network`` tells of the master port on the first node only; ``met`` says of the others why they did not reach the
    first one there (empty: they did).
    """

    host: str
    slots: int = 1
    state: str = "ready"
    error: str = ""
    env: str = "absent"
    env_error: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    gpu: GpuFacts = GpuFacts()
    network: NetworkFacts = NetworkFacts()
    disk: Disk = Disk("")
    shared: bool | None = None
    met: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodesFacts:
    """The nodes of a job, in its order, asked ``over`` ``ssh`` or ``srun``.

    At the first one, called ``address`` by the others, all processes meet at ``port``. ``marker_error`` is why no file
    could be written into the workspace here. ``try_command`` reaches a node by hand, with ``HOST`` for its name;
    ``program`` is the Python of ucllm, which must be there too.
    """

    nodes: tuple[NodeFacts, ...] = ()
    over: str = ""
    port: int = 0
    address: str = ""
    marker_error: str = ""
    try_command: str = ""
    program: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything the checks may look at. ``errors`` maps a section to why it could not be collected.

    ``collected`` are the sections that were asked for: what was not is ``unknown``, never fine and never wrong.
    ``profile`` is the profile they were collected for.
    """

    workspace: str
    profile: str = ""
    machine: MachineFacts = MachineFacts()
    gpu: GpuFacts = GpuFacts()
    tools: ToolsFacts = ToolsFacts()
    network: NetworkFacts = NetworkFacts()
    conda: CondaFacts = CondaFacts()
    env: EnvFacts = EnvFacts("", "absent")
    binaries: BinariesFacts = BinariesFacts()
    sources: SourcesFacts = SourcesFacts()
    builds: BuildsFacts = BuildsFacts()
    access: AccessFacts = AccessFacts()
    data: DataFacts = DataFacts()
    journal: JournalFacts = JournalFacts()
    deep: DeepFacts = DeepFacts()
    smoke: SmokeFacts = SmokeFacts()
    nodes: NodesFacts = NodesFacts()
    collected: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    took_ms: dict[str, float] = field(default_factory=dict)
    facts_version: int = FACTS_VERSION

    def as_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        return dataclasses.asdict(self)
