"""Make a downloaded DeepLesion ready for training: unpack, verify, segment the lesions (weak masks), and pack.

    python datasets/prepare_deeplesion.py --source ~/Downloads/DeepLesion --output datasets/deeplesion
    python datasets/prepare_deeplesion.py --output datasets/deeplesion --pack    # Images_png is there already

--source takes DL_info.csv, zip files, and folders that hold them or folders of slices at any depth. Folders of slices
are linked, not copied. It writes to --output

    DL_info.csv, Images_png/            as configs expect them
    weak_masks.json                     a mask for every lesion: GrabCut, or an ellipse where that fails
    Images_packed/                      with --pack: the slices again, to be read several times faster
    check.json                          what is wrong with the data, as datasets/check_deeplesion.py reports it
    prepare.jsonl                       what is done; a run that was killed goes on from there, and a later one looks
                                        only at files whose names or sizes have changed (--again: at all)

The same data give the same files, whatever the number of workers. Exit status 0: training can start.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from ...files import printable, replacing
from ..mask_file import MASK_FILE, write_masks
from ..packed import PACKED_DIR, import_blosc2
from ..workers import start_worker
from .annotations import check_annotations
from .archives import DamagedArchive, find_sources, link_series, series_in_zip, unpack_series
from .journal import Journal
from .report import Finding, Report
from .series import make_jobs, prepare_series

# What replacing() leaves behind when a run is killed; some files of earlier runs have no process id.
_PART = re.compile(
    r"((DL_info\.csv|prepare\.jsonl|weak_masks\.json|check\.json)(\.\d+)?|(.+\.b2nd|\d+\.png)\.\d+)\.part"
)


def main(argv: list[str] | None = None) -> None:
    """Run the command line of ``datasets/prepare_deeplesion.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", default=[], help="what was downloaded: folders, zip files")
    parser.add_argument("--output", required=True, help="$DETECTRON2_DATASETS/deeplesion")
    parser.add_argument("--pack", action="store_true", help=f"write {PACKED_DIR} as well; needs blosc2")
    parser.add_argument("--again", action="store_true", help="whatever was done before, look at every slice")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    csv_path, image_root = os.path.join(args.output, "DL_info.csv"), os.path.join(args.output, "Images_png")
    try:
        if args.pack:
            import_blosc2()
        os.makedirs(image_root, exist_ok=True)
        with _alone(args.output), ProcessPoolExecutor(args.workers, initializer=start_worker) as pool:
            try:
                gather(pool, args.source, csv_path, image_root, args.again)
                report, masks, packed = prepare(pool, csv_path, image_root, args.pack, args.again)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        sys.exit("A worker died, perhaps for lack of memory. Run the same command again: it goes on from there.")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(printable(str(error)))
    print(report.to_text())
    for title, kinds in (("Weak masks", masks), ("Series packed", packed)):
        print(f"{title}: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items())) or 'none'}")
    sys.exit(0 if report.can_train else 1)


def gather(pool: ProcessPoolExecutor, paths: list[str], csv_path: str, image_root: str, again: bool) -> None:
    """Bring the csv and all slices to where they belong.

    Args:
        pool: processes to unpack in.
        paths: what was downloaded.
        csv_path, image_root: where ``DL_info.csv`` and ``Images_png`` belong.
        again: whether to compare slices that are there with the zip files.

    Raises:
        OSError, ValueError: if something is missing or damaged, or there are two of it.
    """
    _remove_parts(Path(csv_path).parent)
    sources = find_sources(paths)
    _copy_table(sources.tables, csv_path)
    for folder in sources.series.values():
        link_series(folder, image_root)
    futures, damaged, linked, seen = [], [], set(), {}
    for path in sources.zips:
        try:
            members = series_in_zip(path)
        except DamagedArchive as error:
            damaged.append(str(error))
            continue
        for series, names in members.items():
            for name, checksum in names:
                other = seen.setdefault((series, os.path.basename(name)), (path, checksum))
                if other[1] != checksum:
                    raise ValueError(f"{name} differs between {other[0]} and {path}. Leave the one to use.")
            target = os.path.join(image_root, series)
            if not os.path.islink(target):
                futures.append(pool.submit(unpack_series, path, [name for name, _ in names], image_root, again))
            elif os.path.exists(target):
                linked.add(series)  # unpacking would write into a folder that is not ours
            else:
                source = os.readlink(target)
                raise FileNotFoundError(f"{target} leads to {source}, which is not there. Remove the link.")
    if linked:
        print(
            f"{len(linked)} series ({min(linked)} is the first) are linked from folders; not unpacked from zip files."
        )
    for future in tqdm(as_completed(futures), total=len(futures), desc="unpack", unit="series", disable=not futures):
        try:
            future.result()
        except DamagedArchive as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError("\n".join(sorted(damaged)))


def _copy_table(tables: list[str], csv_path: str) -> None:
    """Copy the one csv there is, unless it is in place."""
    contents = {}
    for path in [csv_path, *tables]:
        if os.path.exists(path):
            contents.setdefault(Path(path).read_bytes(), path)
    if not contents:
        raise FileNotFoundError(f"{csv_path} is not there, and there is no DL_info.csv in --source.")
    if len(contents) > 1:
        raise ValueError(f"{' and '.join(contents.values())} differ. Leave the one to use, or remove {csv_path}.")
    if not os.path.exists(csv_path):
        with replacing(csv_path) as part:
            shutil.copyfile(tables[0], part)


def prepare(
    pool: ProcessPoolExecutor, csv_path: str, image_root: str, pack: bool, again: bool
) -> tuple[Report, Counter[str], Counter[str]]:
    """Verify, mask and pack all series.

    Args:
        pool: processes to do so in.
        csv_path, image_root: ``DL_info.csv`` and ``Images_png``.
        pack: whether to write packed series.
        again: whether to do again what the journal has.

    Returns:
        the report, and how many masks and series there are of each kind.
    """
    root = os.path.dirname(csv_path)
    annotations = check_annotations(csv_path)
    journal = Journal(os.path.join(root, "prepare.jsonl"))
    jobs = make_jobs(annotations.records, image_root, pack, {} if again else journal.results)
    futures = [pool.submit(prepare_series, job) for job in jobs]
    for future in tqdm(as_completed(futures), total=len(futures), desc="prepare", unit="series"):
        journal.append(future.result())
    journal.finish({job.series.name for job in jobs})
    results = [journal.results[job.series.name] for job in jobs]

    masks = [mask for result in results for mask in result["masks"]]
    write_masks(os.path.join(root, MASK_FILE), masks)
    findings = [Finding(**finding) for result in results for finding in result["findings"]]
    report = Report(annotations.counts, len(jobs), annotations.findings + findings)
    with replacing(os.path.join(root, "check.json")) as part, open(part, "w", encoding="utf-8") as f:
        json.dump(report.to_dict(), f, indent=1)
    return report, Counter(mask["source"] for mask in masks), Counter(result["packed"] for result in results)


@contextlib.contextmanager
def _alone(root: str):
    """Wait for another run, or what is left of one that was killed."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Another run is at work on {root}; waiting for its end.", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(folder)


def _remove_parts(root: Path) -> None:
    """Remove what a run that was killed had not finished writing; folders that are linked are not ours."""
    series = [path for path in (root / "Images_png").glob("*") if not path.is_symlink()]
    for folder in (root, root / PACKED_DIR, *series):
        for path in folder.glob("*.part"):
            if _PART.fullmatch(path.name):
                path.unlink()
