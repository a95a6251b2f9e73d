//! Which of the machine's cores are hyperthreads of one physical core, and which share a last-level cache.
//!
//! Read from `/sys/devices/system/cpu`. A machine that does not tell (some virtual ones do not) is taken as it looks:
//! each core for itself, and all of them near each other.

use std::fs;
use std::path::Path;

/// A core as the kernel counts them: one hardware thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    /// The kernel's number for it.
    pub(crate) id: usize,
    /// The lowest number among the hardware threads of its physical core, its own if it is alone there.
    pub(crate) physical: usize,
    /// The lowest number among the cores that share its level 3 cache, if the machine tells.
    pub(crate) l3: Option<usize>,
}

impl Core {
    /// What the machine tells of a core. `root` is `/`, but for tests.
    pub(crate) fn read(root: &Path, id: usize) -> Self {
        let folder = root.join(format!("sys/devices/system/cpu/cpu{id}"));
        let physical = lowest(&folder.join("topology/thread_siblings_list")).unwrap_or(id);
        let l3 = fs::read_dir(folder.join("cache")).ok().and_then(|caches| {
            caches.flatten().map(|cache| cache.path()).find_map(|cache| {
                let level = fs::read_to_string(cache.join("level")).ok()?;
                if level.trim() == "3" { lowest(&cache.join("shared_cpu_list")) } else { None }
            })
        });
        Self { id, physical, l3 }
    }
}

/// The lowest core in a file of the kernel's list form.
fn lowest(file: &Path) -> Option<usize> {
    lowest_in(&fs::read_to_string(file).ok()?)
}

/// The lowest core in a list such as `0-1,4`.
fn lowest_in(list: &str) -> Option<usize> {
    let first = |part: &str| part.split('-').next().and_then(|first| first.trim().parse().ok());
    list.split(',').filter_map(first).min()
}

/// The cores in the order in which shards should take them, for `wanted` shards: distinct physical cores first, then
/// second hardware threads; those that are taken stand so that neighbours share a cache.
pub(crate) fn order(cores: &[Core], wanted: usize) -> Vec<Core> {
    // Which hardware thread of its physical core, among those that may be used.
    let thread = |core: &Core| {
        cores.iter().filter(|other| other.physical == core.physical && other.id < core.id).count()
    };
    // A cache with more usable physical cores first: then a few shards find place in one.
    let crowd = |core: &Core| cores.iter().filter(|other| other.l3 == core.l3 && thread(other) == 0).count();
    let near = |core: &Core| (std::cmp::Reverse(crowd(core)), core.l3);
    let mut taken = cores.to_vec();
    taken.sort_by_cached_key(|core| (thread(core), near(core), core.id));
    taken.truncate(wanted);
    taken.sort_by_cached_key(|core| (near(core), thread(core), core.id));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::tree::Tree;

    fn ids(cores: &[Core], wanted: usize) -> Vec<usize> {
        order(cores, wanted).iter().map(|core| core.id).collect()
    }

    /// Two caches of two physical cores of two hardware threads each; siblings are 4 apart.
    fn two_caches() -> Vec<Core> {
        (0..8).map(|id| Core { id, physical: id % 4, l3: Some(id % 4 / 2 * 2) }).collect()
    }

    #[test]
    fn the_lists_of_the_kernel_are_read_and_garbage_is_not() {
        assert_eq!(lowest_in("2-3,1\n"), Some(1));
        assert_eq!(lowest_in("7\n"), Some(7));
        assert_eq!(lowest_in("x,5"), Some(5));
        assert_eq!(lowest_in("\n"), None);
    }

    #[test]
    fn siblings_and_caches_are_read_from_the_tree() {
        let tree = Tree::of(&[
            ("sys/devices/system/cpu/cpu5/topology/thread_siblings_list", "1,5\n"),
            ("sys/devices/system/cpu/cpu5/cache/index0/level", "1\n"),
            ("sys/devices/system/cpu/cpu5/cache/index0/shared_cpu_list", "1,5\n"),
            ("sys/devices/system/cpu/cpu5/cache/index3/level", "3\n"),
            ("sys/devices/system/cpu/cpu5/cache/index3/shared_cpu_list", "0-3,4-7\n"),
            ("sys/devices/system/cpu/cpu6/topology/thread_siblings_list", "garbage"),
            ("sys/devices/system/cpu/cpu6/cache/index3/level", "three"),
        ]);
        assert_eq!(Core::read(tree.root(), 5), Core { id: 5, physical: 1, l3: Some(0) });
        assert_eq!(Core::read(tree.root(), 6), Core { id: 6, physical: 6, l3: None });
        assert_eq!(Core::read(tree.root(), 7), Core { id: 7, physical: 7, l3: None });
    }

    #[test]
    fn physical_cores_come_before_second_threads_and_neighbours_share_a_cache() {
        let cores = two_caches();
        assert_eq!(ids(&cores, 2), [0, 1], "one cache holds both");
        assert_eq!(ids(&cores, 4), [0, 1, 2, 3], "no second thread before all physical cores are taken");
        assert_eq!(ids(&cores, 6), [0, 1, 4, 5, 2, 3], "the second threads stand with their cache");
        assert_eq!(ids(&cores, 8), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn a_cache_that_holds_all_shards_is_taken_before_one_that_does_not() {
        // Of the first cache only one physical core, with both its threads, may be used.
        let cores: Vec<_> = two_caches().into_iter().filter(|core| ![1, 5].contains(&core.id)).collect();
        assert_eq!(ids(&cores, 2), [2, 3]);
        assert_eq!(ids(&cores, 3), [2, 3, 0]);
    }

    #[test]
    fn a_machine_that_tells_nothing_is_taken_in_order() {
        let cores: Vec<_> = [3, 1, 2].map(|id| Core { id, physical: id, l3: None }).into();
        assert_eq!(ids(&cores, 3), [1, 2, 3]);
        assert!(order(&[], 3).is_empty());
    }
}
