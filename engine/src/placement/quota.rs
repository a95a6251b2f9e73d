//! How much CPU time the container lets this process have.
//!
//! A quota is a share of time, not a set of cores: with 1.5 CPUs of eight, eight shards would run for a fifth of each
//! period and then all stand still until it ends. So only whole CPUs of the quota become shards. Quotas nest: each
//! group up to the root of the hierarchy may have one, and the smallest counts. Both versions of control groups are
//! read; files that are missing or make no sense set no limit.

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// A limit of CPU time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quota {
    /// CPUs' worth of time; more than 0.
    pub(crate) cpus: f64,
    /// The file that says so.
    pub(crate) file: PathBuf,
}

impl Quota {
    /// The quota that holds for this process, if there is one. `root` is `/`, but for tests.
    pub(crate) fn read(root: &Path) -> Option<Self> {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mount = root.join("sys/fs/cgroup");
        let limits = groups.lines().filter_map(Group::parse).flat_map(|group| group.limits(&mount));
        limits.min_by(|left, right| left.cpus.total_cmp(&right.cpus))
    }

    /// How many shards can run all the time within it.
    pub(crate) fn whole_cpus(&self) -> usize {
        (self.cpus as usize).max(1)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} CPUs ({})", self.cpus, self.file.display())
    }
}

/// A line of `/proc/self/cgroup` that may limit CPU time: `0::/path` of version 2, `4:cpu,cpuacct:/path` of version 1.
#[derive(Debug, PartialEq)]
struct Group<'a> {
    /// Empty for version 2.
    controllers: &'a str,
    path: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (_hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let limits_cpu = controllers.is_empty() || controllers.split(',').any(|one| one == "cpu");
        limits_cpu.then_some(Self { controllers, path })
    }

    /// The limits of this group and of all groups above it.
    fn limits(&self, mount: &Path) -> Vec<Quota> {
        let mounts = match self.controllers {
            "" => vec![mount.to_path_buf(), mount.join("unified")],
            "cpu" => vec![mount.join("cpu")],
            several => vec![mount.join(several), mount.join("cpu")],
        };
        // Inside a container the path may be that of the host, which is not to be seen here: its root is, and counts.
        let steps: Vec<_> = Path::new(self.path)
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
            .collect();
        let groups = mounts.iter().flat_map(|mount| {
            (0..=steps.len()).map(|depth| mount.join(steps[..depth].iter().collect::<PathBuf>()))
        });
        groups.filter_map(|group| self.limit_in(&group)).collect()
    }

    fn limit_in(&self, group: &Path) -> Option<Quota> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let (cpus, name) = if self.controllers.is_empty() {
            (cpu_max(&read("cpu.max")?)?, "cpu.max")
        } else {
            (share(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())?, "cpu.cfs_quota_us")
        };
        Some(Quota { cpus, file: group.join(name) })
    }
}

/// Version 2: `max 100000`, or `150000 100000` for a CPU and a half.
fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota, period)
}

/// Microseconds in each period of microseconds. No limit is `max` or -1.
fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::tree::Tree;

    fn quota_of(files: &[(&str, &str)]) -> Option<f64> {
        Quota::read(Tree::of(files).root()).map(|quota| quota.cpus)
    }

    #[test]
    fn the_texts_of_the_kernel_are_read_and_garbage_sets_no_limit() {
        assert_eq!(cpu_max("150000 100000\n"), Some(1.5));
        for none in ["max 100000\n", "", "max", "12", "a b", "-1 100000", "0 100000", "100000 0", "1 2 3"] {
            assert_eq!(cpu_max(none), None, "{none:?}");
        }
        assert_eq!(share("-1", "100000"), None);
        assert_eq!(Group::parse("0::/a:b"), Some(Group { controllers: "", path: "/a:b" }));
        assert_eq!(Group::parse("5:memory:/"), None);
        assert_eq!(Group::parse("5:cpuset,cpuacct:/"), None);
        assert_eq!(Group::parse("garbage"), None);
    }

    #[test]
    fn the_smallest_quota_up_the_hierarchy_counts() {
        let files = [
            ("proc/self/cgroup", "0::/pods/one/box\n"),
            ("sys/fs/cgroup/pods/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/pods/one/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/pods/one/box/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/other/cpu.max", "1000 100000\n"),
        ];
        let tree = Tree::of(&files);
        let quota = Quota::read(tree.root()).unwrap();
        assert_eq!((quota.cpus, quota.whole_cpus()), (1.5, 1));
        assert!(quota.file.ends_with("pods/one/cpu.max"), "{quota}");
    }

    #[test]
    fn a_container_that_sees_itself_as_the_root_has_the_quota_of_the_root() {
        let cpu_max = ("sys/fs/cgroup/cpu.max", "250000 100000");
        assert_eq!(quota_of(&[("proc/self/cgroup", "0::/\n"), cpu_max]), Some(2.5));
        // The host's path, of which nothing is to be seen in here; and one that points out of the root.
        assert_eq!(quota_of(&[("proc/self/cgroup", "0::/docker/abc\n"), cpu_max]), Some(2.5));
        assert_eq!(quota_of(&[("proc/self/cgroup", "0::/../../abc\n"), cpu_max]), Some(2.5));
    }

    #[test]
    fn version_1_is_read_beside_version_2() {
        let groups = "4:cpu,cpuacct:/box\n3:memory:/box\n0::/\n";
        let quota = ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "50000\n");
        let period = ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota_of(&[("proc/self/cgroup", groups), quota, period]), Some(0.5));
        let unified = ("sys/fs/cgroup/unified/cpu.max", "20000 100000\n");
        assert_eq!(quota_of(&[("proc/self/cgroup", groups), quota, period, unified]), Some(0.2));
        let none = ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n");
        assert_eq!(quota_of(&[("proc/self/cgroup", groups), none, period]), None);
        assert_eq!(quota_of(&[("proc/self/cgroup", groups), quota]), None, "without a period");
    }

    #[test]
    fn without_files_there_is_no_quota_and_half_a_cpu_is_still_a_shard() {
        assert_eq!(quota_of(&[]), None);
        assert_eq!(quota_of(&[("proc/self/cgroup", "\u{0}garbage\n::\n")]), None);
        let half = Quota { cpus: 0.5, file: PathBuf::new() };
        assert_eq!(half.whole_cpus(), 1);
    }
}
