//! Memory of the machine, the limits that a container sets, and how the C allocator gives memory back.
//!
//! Invariant: what is said to be available can be taken: limits of every control group above this process count, file
//! pages that the system would drop do not. Reference: Linux `Documentation/filesystems/proc.rst` (meminfo),
//! `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/memory.rst`. Elsewhere nothing is known.

use std::path::{Path, PathBuf};

/// What the system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryState {
    /// Memory of the machine.
    pub total: Option<u64>,
    /// What new processes could take without swapping.
    pub free: Option<u64>,
    /// The least limit of the control groups that this process is in.
    pub limit: Option<u64>,
    /// What that leaves.
    pub left: Option<u64>,
}

impl MemoryState {
    /// What this process can still take.
    pub fn available(&self) -> Option<u64> {
        [self.free, self.left].into_iter().flatten().min()
    }
}

/// Reads the state of this machine.
pub fn state() -> MemoryState {
    state_under(Path::new("/"))
}

/// What this process can still take, where the system tells.
pub fn available() -> Option<u64> {
    state().available()
}

/// [`state`] of a machine whose `proc` and `sys` lie in `root`.
fn state_under(root: &Path) -> MemoryState {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let meminfo = read(&root.join("proc/meminfo")).unwrap_or_default();
    let kib = |name: &str| field(&meminfo, name).map(|value| value * 1024);
    let mut state = MemoryState { total: kib("MemTotal:"), free: kib("MemAvailable:"), ..MemoryState::default() };
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    for group in groups.lines().flat_map(|line| control_groups(root, line)) {
        let Group { folder, limit, usage, cache } = group;
        let number = |name: &str| read(&folder.join(name)).and_then(|text| text.trim().parse::<u64>().ok());
        // Version 1 writes "no limit" as a number that no machine has.
        let Some(limit) = number(limit).filter(|limit| *limit < 1 << 60) else { continue };
        let statistics = read(&folder.join("memory.stat")).unwrap_or_default();
        let used = number(usage).unwrap_or(0).saturating_sub(field(&statistics, cache).unwrap_or(0));
        let left = limit.saturating_sub(used);
        state.limit = Some(state.limit.map_or(limit, |least| least.min(limit)));
        state.left = Some(state.left.map_or(left, |least| least.min(left)));
    }
    state
}

/// A control group and the names of its files.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// File pages that can be dropped, in memory.stat.
    cache: &'static str,
}

/// The group of a line of `/proc/self/cgroup` and all groups above it, if it governs memory.
fn control_groups(root: &Path, line: &str) -> Vec<Group> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (mount, limit, usage, cache) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    } else {
        return Vec::new();
    };
    let mount = root.join(mount);
    // In a container the path may be the host's, and the group is mounted at the top.
    let inside = Path::new(path.trim_start_matches('/'));
    let folders = inside.ancestors().map(|part| mount.join(part));
    folders.map(|folder| Group { folder, limit, usage, cache }).collect()
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Has the C allocator take large pieces of memory straight from the system and give them back when they are freed.
///
/// By itself glibc raises that threshold to 32 MiB as a program goes on, and what is freed below it stays with the
/// process. Called once, at the start.
pub fn settle_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 1 << 20;
        // SAFETY: mallopt sets numbers; no other thread exists yet that could be allocating.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * LARGE);
        }
    }
}

/// Gives freed memory back to the system: after a phase that allocated a lot in small pieces.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       24683520 kB\nMemFree: 1 kB\nMemAvailable:    1000000 kB\n");

    #[test]
    fn without_control_groups_the_machine_decides() {
        let root = machine(&[MEMINFO]);
        let state = state_under(root.path());
        assert_eq!((state.total, state.available()), (Some(24683520 * 1024), Some(1_000_000 * 1024)));
        assert_eq!((state.limit, state.left), (None, None));
        assert_eq!(state_under(machine(&[]).path()), MemoryState::default());
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_without_its_cached_files() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/jobs/run\n"),
            ("sys/fs/cgroup/jobs/run/memory.max", "max\n"),
            ("sys/fs/cgroup/jobs/memory.max", "500000000\n"),
            ("sys/fs/cgroup/jobs/memory.current", "450000000\n"),
            ("sys/fs/cgroup/jobs/memory.stat", "anon 5\ninactive_file 300000000\n"),
        ]);
        let state = state_under(root.path());
        assert_eq!((state.limit, state.left), (Some(500_000_000), Some(350_000_000)));
        assert_eq!(state.available(), Some(350_000_000));
    }

    #[test]
    fn in_a_container_the_group_is_mounted_at_the_top() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/host/path/of/container\n"),
            ("sys/fs/cgroup/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/memory.current", "1999999999\n"),
        ]);
        assert_eq!(state_under(root.path()).available(), Some(1));
    }

    #[test]
    fn version_1_has_other_names_and_a_number_for_no_limit() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/a/b\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "800\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "500\n"),
            ("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ]);
        let state = state_under(root.path());
        assert_eq!((state.limit, state.left), (Some(800), Some(400)));
    }
}
