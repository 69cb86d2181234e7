"""A Hydra app without torch that a sweep is tried on: a parabola, which fails, dies or waits when told to."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.halflife_sweeper import report


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: Any) -> Any:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    number = HydraConfig.get().sweeper.get("trial")
    with (Path(cfg.log) if cfg.log else run_dir / "started").open("a") as file:
        file.write(f"{number} {os.getpid()} {cfg.x}\n")
    value = -((cfg.x - 1) ** 2) + cfg.shape.bonus + 0.01 * cfg.seed
    for step in range(1, cfg.steps + 1):
        time.sleep(cfg.seconds / cfg.steps)
        report(value - 1 / step, step)
    if cfg.do == "fail_above" and cfg.x > cfg.limit:
        raise RuntimeError("x is too large\nand more")
    if cfg.do == "memory":
        raise MemoryError("no room")
    if cfg.do == "leave":
        sys.exit(3)
    if cfg.do == "undefined":
        return float("nan")
    if cfg.do == "nothing":
        return None
    if cfg.do == "interrupt" and number == cfg.limit:
        raise KeyboardInterrupt
    if cfg.do == "die" and number == cfg.limit:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.do == "die_always":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.do == "lose" and number == cfg.limit:
        Path(cfg.lose).rename(f"{cfg.lose}.away")
    return [value, abs(cfg.x)] if cfg.do == "two" else value


if __name__ == "__main__":
    main()
