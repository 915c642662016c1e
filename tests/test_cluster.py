"""Launching on clusters: the Kubernetes manifest; two hosts with a link that is cut; a real Slurm.

The latter two need root and are run on demand: make test-multihost, make test-slurm.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, tool

PATH = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
CONFIG = 'configs/demo/classifier_shapes.py'
STEPS = 60


def options(shapes: Path, work_dir: Path) -> list[str]:
    given = ['--device', 'cpu', '--seed', '0', '--deterministic', '--stop-at', str(STEPS)]
    given += ['--data-root', f'{shapes}/classification', '--work-dir', str(work_dir), '--cfg-options']
    hooks = ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=10']
    return [*given, *hooks, 'default_hooks.checkpoint.max_keep_ckpts=3', 'train_dataloader.batch_size=4']


def compared_with_one_host(shapes: Path, work_dir: Path, folder: Path) -> list[str]:
    """What differs from the same training with two processes on one host that nothing happened to."""
    subprocess.run(
        ['tools/dist_train.sh', CONFIG, '2', *options(shapes, folder / 'straight')],
        env={**os.environ, 'PATH': PATH, 'MASTER_PORT': '29655'},
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return tool('verify_resume').compare(folder / 'straight', work_dir, STEPS)


def wait_for(text: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < deadline, (
            f'no {text!r} in {log}: {log.read_text()[-2000:] if log.is_file() else ""}'
        )
        time.sleep(0.1)


def test_the_pods_of_the_manifest_start_torchrun_on_both_machines(tmp_path):
    """With the variables that the operator sets; a program in the place of python prints what it is given."""
    job = yaml.safe_load((ROOT / 'docs/pytorchjob.yaml').read_text())
    replicas = job['spec']['pytorchReplicaSpecs']
    assert job['kind'] == 'PyTorchJob'
    assert [each['replicas'] for each in replicas.values()] == [1, 1]
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 8 || echo "$@"\n')
    python.chmod(0o755)
    for rank, replica in enumerate(replicas.values()):
        assert replica['restartPolicy'] == 'OnFailure'
        (container,) = replica['template']['spec']['containers']
        given = dict(WORLD_SIZE='2', RANK=str(rank), MASTER_ADDR='cascade-master-0', MASTER_PORT='23456')
        result = subprocess.run(
            container['command'],
            env={**given, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        said = result.stdout
        assert f'--nnodes 2 --node_rank {rank} --master_addr cascade-master-0 --master_port 23456' in said, (
            result
        )
        (config,) = re.findall(r'train.py (\S+) --launcher pytorch', said)
        assert '--nproc_per_node 8' in said
        assert (ROOT / config).is_file()
        tool('train').parse_args(said.split('train.py ')[1].split())
        assert container['resources']['limits']['nvidia.com/gpu'] == 8


# Two hosts


@contextlib.contextmanager
def two_hosts():
    """Two network namespaces with 10.231.0.1 and .2, joined by a pair of interfaces; gives their names."""

    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(['ip', *arguments], check=check, capture_output=True)

    names = ['convnext0', 'convnext1']
    for name in names:
        ip('netns', 'del', name, check=False)
        ip('netns', 'add', name)
    try:
        ip('link', 'add', 'cnx0', 'type', 'veth', 'peer', 'name', 'cnx1')
        for number, name in enumerate(names):
            ip('link', 'set', f'cnx{number}', 'netns', name)
            ip('-n', name, 'addr', 'add', f'10.231.0.{number + 1}/24', 'dev', f'cnx{number}')
            for link in ('lo', f'cnx{number}'):
                ip('-n', name, 'link', 'set', link, 'up')
        yield names
    finally:
        for name in names:
            ip('netns', 'del', name, check=False)


@pytest.mark.multihost
@pytest.mark.parametrize(
    ('seconds', 'timeout', 'restarts'),
    [(5, 540, False), (40, 10, True)],
    ids=['short', 'until the hosts give up'],
)
def test_a_training_on_two_hosts_survives_a_cut_link(seconds, timeout, restarts, shapes, tmp_path):
    """A short cut is waited for; after a long one torchrun starts the processes of both hosts again."""
    if os.getuid() or not shutil.which('ip'):
        pytest.skip('needs root and iproute2')
    work_dir = tmp_path / 'w'
    with two_hosts() as hosts, contextlib.ExitStack() as stack:
        started = []
        for number, host in enumerate(hosts):
            own = dict(NODE_RANK=str(number), MASTER_ADDR='10.231.0.1', MASTER_PORT='29777')
            own.update(LOCAL_ADDR=f'10.231.0.{number + 1}', GLOO_SOCKET_IFNAME=f'cnx{number}', PATH=PATH)
            line = ['ip', 'netns', 'exec', host, 'tools/dist_train.sh', CONFIG, '1', '--nnodes', '2']
            line += [
                '--max-restarts',
                '9',
                *options(shapes, work_dir),
                f'default_hooks.hang.timeout={timeout}',
            ]
            log = stack.enter_context((tmp_path / f'{number}.log').open('w'))
            started.append(
                subprocess.Popen(
                    line, env={**os.environ, **own}, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )
            )
        wait_for('Iter(train) [  13', tmp_path / '0.log')
        subprocess.run(['ip', '-n', hosts[0], 'link', 'set', 'cnx0', 'down'], check=True)
        time.sleep(seconds)
        assert 'Iter(train) [  40' not in (tmp_path / '0.log').read_text()  # nothing came through
        subprocess.run(['ip', '-n', hosts[0], 'link', 'set', 'cnx0', 'up'], check=True)
        assert [process.wait(240) for process in started] == [0, 0], (tmp_path / '0.log').read_text()[-3000:]
    said = (tmp_path / '0.log').read_text()
    assert ('resumed epoch: 0, iter: 10' in said) == restarts
    assert ('no step was finished for' in said) == restarts
    assert compared_with_one_host(shapes, work_dir, tmp_path) == []


# Slurm

SLURM = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldPort=26817
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} Port=27001 CPUs=1
NodeName=n2 NodeHostname={host} Port=27002 CPUs=1
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """A cluster of two nodes, both on this machine; gives the environment of its commands."""
    needed = ('slurmctld', 'slurmd', 'munged', 'sbatch')
    if os.getuid() or not all(shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin') for name in needed):
        pytest.skip('needs root, and: apt install slurm-wlm munge')
    folder = tmp_path_factory.mktemp('slurm')
    (folder / 'state').mkdir()
    config = folder / 'slurm.conf'
    config.write_text(SLURM.format(host=socket.gethostname().split('.')[0], folder=folder))
    (folder / 'cgroup.conf').write_text('CgroupAutomount=no\n')
    own_munge = subprocess.run(['pgrep', 'munged'], capture_output=True).returncode != 0
    if own_munge:
        Path('/run/munge').mkdir(exist_ok=True)
        shutil.chown('/run/munge', 'munge', 'munge')
        subprocess.run(['su', '-s', '/bin/sh', 'munge', '-c', '/usr/sbin/munged'], check=True)
    environment = {
        **os.environ,
        'SLURM_CONF': str(config),
        'PATH': f'{PATH}:/usr/sbin',
        'MASTER_ADDR': '127.0.0.1',
    }
    for line in (['slurmctld', '-D'], ['slurmd', '-D', '-N', 'n1'], ['slurmd', '-D', '-N', 'n2']):
        subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while 'idle' not in (said := run_in(environment, 'sinfo', '-h', '-o', '%T %D')) or ' 2' not in said:
        assert time.monotonic() < deadline, said
        time.sleep(1)
    yield environment
    subprocess.run(['scancel', '--user', 'root'], env=environment)
    for name in ('n1', 'n2', 'slurmctld'):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f'{name}.pid').read_text()), 15)
    if own_munge:
        subprocess.run(['pkill', 'munged'])


def run_in(environment: dict, *line: str) -> str:
    return subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.slurm
def test_a_slurm_job_that_an_operator_requeues_goes_on(slurm, shapes, tmp_path):
    """It gets SIGTERM, and may be gone before it says where it stopped."""
    _, stopped, resumed = job_after(['scontrol', 'requeue'], slurm, shapes, tmp_path)
    assert len(resumed) == 1
    assert stopped in ([], resumed)


@pytest.mark.slurm
def test_a_slurm_job_whose_time_is_over_queues_itself_again(slurm, shapes, tmp_path):
    """It gets SIGUSR1 before the time limit."""
    said, stopped, resumed = job_after(['scancel', '--signal', 'USR1'], slurm, shapes, tmp_path)
    assert 'is queued again' in said
    assert len(resumed) == 1
    assert stopped == resumed


def job_after(line: list[str], slurm, shapes, tmp_path) -> tuple[str, list[str], list[str]]:
    """Train in a job to which ``line`` happens; its log, the steps at which it stopped and was resumed."""
    log, work_dir = tmp_path / 'log', tmp_path / 'w'
    submitted = ['--nodes', '2', '--ntasks-per-node', '1', '--output', str(log), '--', CONFIG]
    said = run_in(slurm, 'tools/slurm_train.sh', *submitted, *options(shapes, work_dir))
    (job,) = re.findall(r'Submitted batch job (\d+)', said)
    wait_for('Iter(train) [  13', log)
    run_in(slurm, *line, job)
    deadline = time.monotonic() + 300  # Slurm waits two minutes before it starts a job again
    while job in run_in(slurm, 'squeue', '-h', '-o', '%i'):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(1)
    said = log.read_text()
    assert compared_with_one_host(shapes, work_dir, tmp_path) == []
    assert 'Restarts=1' in run_in(slurm, 'scontrol', 'show', 'job', job)
    stopped = re.findall(r'stopped after step (\d+) \(SIG(?:TERM|USR1) came\)', said)
    return said, stopped, re.findall(r'resumed epoch: 0, iter: (\d+)', said)


@pytest.mark.slurm
def test_each_task_of_a_job_array_has_its_folder_and_a_cancelled_one_is_not_queued_again(
    slurm, shapes, tmp_path
):
    line = ['--array', '3-4', '--ntasks', '1', '--output', f'{tmp_path}/%a.log', '--', CONFIG]
    said = run_in(slurm, 'tools/slurm_train.sh', *line, *options(shapes, tmp_path / 'w%a'))
    (job,) = re.findall(r'Submitted batch job (\d+)', said)
    wait_for('Iter(train) [  5', tmp_path / '3.log')
    run_in(slurm, 'scancel', f'{job}_3')
    deadline = time.monotonic() + 120
    while run_in(slurm, 'squeue', '-h', '-j', job):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert '--stop-at' in (tmp_path / '4.log').read_text()
    assert (tmp_path / f'w4/iter_{STEPS}.pth').is_file()
    assert not (tmp_path / f'w3/iter_{STEPS}.pth').is_file()
    assert 'queued again' not in (tmp_path / '3.log').read_text()
