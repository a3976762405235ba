#!/usr/bin/env python
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

from tqdm import tqdm

from a3d_det2.data.preparation.annotations import Report, check_annotations
from a3d_det2.data.mask_file import MASK_FILE, write_masks
from a3d_det2.data.packed import PACKED_DIR, import_blosc2
from a3d_det2.data.preparation.series import Journal, findings_of, make_jobs, prepare_series, start_worker
from a3d_det2.data.preparation.archives import DamagedArchive, find_sources, link_series, series_in_zip, unpack_series

_PART = re.compile(r"(DL_info\.csv|prepare\.jsonl|weak_masks\.json|check\.json|(.+\.b2nd|\d+\.png)\.\d+)\.part")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", default=[], help="what was downloaded: folders, zip files")
    parser.add_argument("--output", required=True, help="$DETECTRON2_DATASETS/deeplesion")
    parser.add_argument("--pack", action="store_true", help=f"write {PACKED_DIR} as well; needs blosc2")
    parser.add_argument("--again", action="store_true", help="whatever was done before, look at every slice")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    args = parse_args()
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
        sys.exit(f"{error}")
    print(report.to_text())
    print(f"Weak masks: {', '.join(f'{count} {source}' for source, count in sorted(masks.items())) or 'none'}")
    print(f"Series packed: {', '.join(f'{count} {state}' for state, count in sorted(packed.items())) or 'none'}")
    sys.exit(0 if report.can_train else 1)


def gather(pool: ProcessPoolExecutor, paths: list[str], csv_path: str, image_root: str, again: bool) -> None:
    """Bring the csv and all slices to where they belong."""
    _remove_parts(os.path.dirname(csv_path))
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
            if os.path.islink(target) and not os.path.exists(target):
                raise FileNotFoundError(
                    f"{target} leads to {os.readlink(target)}, which is not there. Remove the link."
                )
            if os.path.islink(target):
                linked.add(series)  # unpacking would write into a folder that is not ours
            else:
                futures.append(pool.submit(unpack_series, path, [name for name, _ in names], image_root, again))
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
            with open(path, "rb") as f:
                contents.setdefault(f.read(), path)
    if not contents:
        raise FileNotFoundError(f"{csv_path} is not there, and there is no DL_info.csv in --source.")
    if len(contents) > 1:
        raise ValueError(f"{' and '.join(contents.values())} differ. Leave the one to use, or remove {csv_path}.")
    if not os.path.exists(csv_path):
        shutil.copyfile(tables[0], f"{csv_path}.part")
        os.replace(f"{csv_path}.part", csv_path)


def prepare(
    pool: ProcessPoolExecutor, csv_path: str, image_root: str, pack: bool, again: bool
) -> tuple[Report, Counter[str], Counter[str]]:
    """Verify, mask and pack; returns the report, and how many masks and series there are of each kind."""
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
    findings = [finding for result in results for finding in findings_of(result)]
    report = Report(annotations, len(jobs), annotations.findings + findings)
    with open(os.path.join(root, "check.json.part"), "w", encoding="utf-8") as f:
        json.dump(report.to_dict(), f, indent=1)
    os.replace(os.path.join(root, "check.json.part"), os.path.join(root, "check.json"))
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


def _remove_parts(root: str) -> None:
    """What a run that was killed had not finished writing."""
    for folder in (root, os.path.join(root, PACKED_DIR)):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if _PART.fullmatch(name):
                os.remove(os.path.join(folder, name))
    image_root = os.path.join(root, "Images_png")
    for entry in os.scandir(image_root) if os.path.isdir(image_root) else ():
        if entry.is_dir(follow_symlinks=False):
            for name in os.listdir(entry.path):
                if _PART.fullmatch(name):
                    os.remove(os.path.join(entry.path, name))


if __name__ == "__main__":
    main()
