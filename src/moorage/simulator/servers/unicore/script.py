"""The two files the server and its TSI write for a job: the job script and the batch script around it."""

import re
import secrets
import string
from collections.abc import Mapping
from pathlib import Path

from .config import SiteConfig
from .description import Description, Failed, Request

exit_code_file = "UNICORE_SCRIPT_EXIT_CODE"


def suffix() -> str:
    """Six capitals or digits, as the TSI appends to file names."""
    return "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(6))


def slurm_name(name: str) -> str:
    """A job name with any other character is replaced as a whole. Source: UNICORE-EU/tsi slurm/BSS.py."""
    return name if re.fullmatch(r"[0-9a-zA-Z.:=~/]+", name) else "UNICORE_job"


def command_line(description: Description, config: SiteConfig) -> str:
    """The command as the shell will read it: nothing of it is quoted, neither here nor on the server."""
    if description.raw_file:
        return f"/bin/bash ./{description.raw_file}"
    command = description.executable or ""
    if description.application:
        name, version = description.application
        found = next((a for a in config.applications if a.name == name and version in (None, "", a.version)), None)
        if found is None:
            raise Failed(
                "Processing failed: eu.unicore.xnjs.ems.ExecutionException: The requested Application "
                f"'{name} v{version or ''}' is not available. (Requested application is not defined)"
            )
        command = found.command
    return " ".join((command, *description.arguments))


def environment(request: Request | None, directory: Path) -> dict[str, str]:
    """Variables the server sets for every job."""
    variables = {"UC_WORKING_DIRECTORY": f"{directory}/"}
    if request is not None:
        variables["UC_NODES"] = request.values.get("Nodes", "1")
        variables["UC_PROCESSORS_PER_NODE"] = request.values.get("CPUsPerNode", "1")
        nodes, per_node = int(variables["UC_NODES"]), int(variables["UC_PROCESSORS_PER_NODE"])
        variables["UC_TOTAL_PROCESSORS"] = request.values.get("TotalCPUs", str(nodes * per_node))
        variables["UC_RUNTIME"] = request.values["Runtime"]
    return variables


def job_script(
    description: Description, config: SiteConfig, request: Request | None, directory: Path, batch_id: str = ""
) -> str:
    """
    The text of `UNICORE_Job_XXXXXX`.

    Values of variables stand between double quotes and are otherwise unchanged, so the shell expands them.
    Source: UNICORE-EU/unicorex xnjs TSIUtils, Execution; UNICORE-EU/tsi.
    """
    on_login_node = description.kind == "ON_LOGIN_NODE"
    lines = [config.script_header, "#TSI_EXECUTESCRIPT" if on_login_node else "#TSI_SUBMIT"]
    for key, value in (request.values if request else {}).items():
        lines.append(f"#TSI_{directive_name(key)} {value}")
    lines += [f'{key}="{value}"; export {key}' for key, value in config.job_environment.items()]
    lines += [f'{key}="{value}"; export {key}' for key, value in environment(request, directory).items()]
    lines.append("PATH=$PATH:. ; export PATH")
    if batch_id:
        lines.append(f'SLURM_JOB_ID="{batch_id}"; export SLURM_JOB_ID')
    lines += [f'{key}="{value}"; export {key}' for key, value in description.environment]
    lines.append(f'cd "{directory}"')
    for command in (description.pre, None):
        if command is not None and not command.on_login_node:
            lines += [command.text]
    first = command_line(description, config).split(" ")[0]
    if description.executable:
        lines.append(f"chmod u+x {first} 2> /dev/null")
    lines.append(f"rm -f {exit_code_file}")
    redirect = f" < {description.stdin}" if description.stdin else ""
    if description.executes and description.kind != "ALLOCATE":
        lines.append(command_line(description, config) + redirect)
    lines.append("UNICORE_EXIT_CODE=$?")
    if description.post is not None and not description.post.on_login_node:
        lines.append(description.post.text)
    lines.append(f"echo $UNICORE_EXIT_CODE > {exit_code_file}")
    return "\n".join(lines) + "\n"


def directive_name(resource: str) -> str:
    known = {
        "Nodes": "NODES",
        "CPUsPerNode": "PROCESSORS_PER_NODE",
        "TotalCPUs": "TOTAL_PROCESSORS",
        "GPUsPerNode": "GPUS_PER_NODE",
        "MemoryPerNode": "MEMORY",
        "Runtime": "TIME",
        "Queue": "QUEUE",
        "Project": "PROJECT",
        "Reservation": "RESERVATION_REFERENCE",
        "QoS": "QOS",
    }
    return known.get(resource) or "SSR_" + resource.upper().replace(" ", "_")


def batch_script(description: Description, config: SiteConfig, request: Request, directory: Path, job_file: str) -> str:
    """The text of `bss_submit_XXXXXX`: one `#SBATCH --KEY=VALUE` per line. Source: UNICORE-EU/tsi slurm."""
    options = sbatch_options(description, request.values, config.directive_bugs)
    options["output"] = str(directory / description.stdout)
    options["error"] = str(directory / description.stderr)
    options["chdir"] = str(directory)
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in options.items()]
    lines += [f"umask {description.umask:o}", str(directory / job_file)]
    return "\n".join(lines) + "\n"


def sbatch_options(description: Description, values: Mapping[str, str], directive_bugs: bool) -> dict[str, str]:
    """Options for Slurm in the TSI's order; `directive_bugs` adds the arithmetic of UNICORE 10.1 to 11.1."""
    options = {"job-name": slurm_name(description.name), "partition": values["Queue"]}
    if values.get("Exclusive") == "true":
        options["exclusive"] = ""
    for key, name in (("comment", "Comment"), ("account", "Project")):
        if name in values:
            options[key] = values[name]
    if "Nodes" in values:
        options["nodes"] = values["Nodes"]
        if "CPUsPerNode" in values:
            options["ntasks-per-node"] = values["CPUsPerNode"]
    elif "TotalCPUs" in values:
        options["ntasks"] = values["TotalCPUs"]
    memory_mb = int(values["MemoryPerNode"]) // (1 << 20) if "MemoryPerNode" in values else None
    if memory_mb is not None and directive_bugs:
        # A cast to 32 bits before the division: 2 GiB and more are mangled.
        low = int(values["MemoryPerNode"]) & 0xFFFFFFFF
        memory_mb = (low - (1 << 32) if low >= 1 << 31 else low) // (1 << 20)
    if "GPUsPerNode" in values:
        gpus = str(memory_mb if memory_mb is not None else -1) if directive_bugs else values["GPUsPerNode"]
        options["gpus-per-node"] = gpus
    for key, name in (("constraint", "NodeConstraints"), ("qos", "QoS")):
        if name in values:
            options[key] = values[name]
    if memory_mb is not None and memory_mb > 0:
        options["mem"] = str(memory_mb)
    options["time"] = str(max(1, int(values["Runtime"]) // 60))
    if description.email:
        options["mail-user"], options["mail-type"] = description.email, "ALL"
    if "Reservation" in values:
        options["reservation"] = values["Reservation"]
    if "ArraySize" in values:
        limit = f"%{values['ArrayLimit']}" if "ArrayLimit" in values else ""
        options["array"] = f"0-{values['ArraySize']}{limit}"
    return options
