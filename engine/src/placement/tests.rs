//! Whole placements, on machines made of files.

use super::tree::Tree;
use super::*;

/// Two level 3 caches, in each two physical cores with two hardware threads; siblings are neighbours: 0-1, 2-3, ...
fn eight_threads(more: &[(&str, &str)]) -> Tree {
    let mut files: Vec<(String, String)> = Vec::new();
    for id in 0..8 {
        let folder = format!("sys/devices/system/cpu/cpu{id}");
        let (first, cache) = (id / 2 * 2, id / 4 * 4);
        files.push((format!("{folder}/topology/thread_siblings_list"), format!("{first}-{}\n", first + 1)));
        files.push((format!("{folder}/cache/index2/level"), "2\n".into()));
        files.push((format!("{folder}/cache/index2/shared_cpu_list"), format!("{first}-{}\n", first + 1)));
        files.push((format!("{folder}/cache/index3/level"), "3\n".into()));
        files.push((format!("{folder}/cache/index3/shared_cpu_list"), format!("{cache}-{}\n", cache + 3)));
    }
    let all: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    Tree::of(&[&all, more].concat())
}

fn choose(tree: &Tree, usable: &[usize], wish: &Wish) -> Placement {
    Placement::choose(wish, &Machine::read(tree.root(), usable)).unwrap()
}

fn cores(placement: &Placement) -> Vec<usize> {
    placement.shards().iter().map(|place| place.core).collect()
}

const ALL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
const ONE_AND_A_HALF: [(&str, &str); 2] =
    [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "150000 100000\n")];

#[test]
fn the_default_is_the_affinity_mask_in_the_order_of_the_caches() {
    let tree = eight_threads(&[]);
    let placement = choose(&tree, &ALL, &Wish::default());
    assert_eq!(cores(&placement), [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!(placement.shards()[1], ShardPlace { shard: ShardId(1), core: 2, physical: 2, l3: Some(0) });
    assert!(placement.warnings().is_empty() && placement.quota_cpus().is_none());
    assert_eq!(cores(&choose(&tree, &[2, 5], &Wish::default())), [2, 5], "of the mask only");
}

#[test]
fn asked_for_shards_take_physical_cores_first() {
    let tree = eight_threads(&[]);
    let wish = |shards| Wish { shards: Some(shards), ..Wish::default() };
    assert_eq!(cores(&choose(&tree, &ALL, &wish(2))), [0, 2]);
    assert_eq!(cores(&choose(&tree, &ALL, &wish(4))), [0, 2, 4, 6]);
    let ten = choose(&tree, &ALL, &wish(10));
    assert_eq!(cores(&ten), [0, 2, 1, 3, 4, 6, 5, 7, 0, 2]);
    assert!(ten.warnings()[0].contains("10 shards on 8 core(s)"), "{ten}");
}

#[test]
fn a_quota_caps_the_default_but_not_what_was_asked_for() {
    let tree = eight_threads(&ONE_AND_A_HALF);
    let placement = choose(&tree, &ALL, &Wish::default());
    assert_eq!((cores(&placement), placement.quota_cpus()), (vec![0], Some(1.5)));
    assert!(placement.reason().contains("quota of 1.50 CPUs") && placement.reason().contains("cpu.max"));
    assert!(placement.warnings().is_empty(), "{placement}");
    let two = choose(&tree, &ALL, &Wish { shards: Some(2), ..Wish::default() });
    assert_eq!(two.shards().len(), 2);
    assert!(two.warnings()[0].contains("2 shards under a quota"), "{two}");
    // A quota of more than the mask caps nothing.
    let more = [ONE_AND_A_HALF[0], ("sys/fs/cgroup/cpu.max", "900000 100000\n")];
    assert_eq!(choose(&eight_threads(&more), &ALL, &Wish::default()).shards().len(), 8);
}

#[test]
fn spinning_under_a_quota_warns_and_without_one_does_not() {
    let spin = Wish { idle: Idle::Spin, ..Wish::default() };
    let placement = choose(&eight_threads(&ONE_AND_A_HALF), &ALL, &spin);
    assert!(placement.warnings()[0].contains("burn") && placement.warnings()[0].contains("throttled"));
    assert!(choose(&eight_threads(&[]), &ALL, &spin).warnings().is_empty());
}

#[test]
fn named_cores_are_kept_as_given_and_must_exist() {
    let tree = eight_threads(&ONE_AND_A_HALF);
    let wish = |cores: &[usize]| Wish { cores: Some(cores.into()), shards: Some(1), ..Wish::default() };
    assert_eq!(cores(&choose(&tree, &ALL, &wish(&[7, 0, 3]))), [7, 0, 3]);
    let twice = choose(&tree, &ALL, &wish(&[4, 4]));
    assert!(twice.warnings()[0].contains("2 shards on 1 core(s)"), "{twice}");
    let machine = Machine::read(tree.root(), &[0, 1]);
    let refused = Placement::choose(&wish(&[1, 2]), &machine).unwrap_err();
    assert!(matches!(refused, StartError::NoSuchCore { core: 2 }));
}

#[test]
fn a_number_of_shards_that_makes_no_sense_is_refused() {
    let machine = Machine::of_equal_cores(4);
    for shards in [0, SHARDS_MAX + 1, usize::MAX] {
        let refused = Placement::choose(&Wish { shards: Some(shards), ..Wish::default() }, &machine);
        assert!(matches!(refused.unwrap_err(), StartError::Shards(count) if count == shards));
    }
    let nothing = Placement::choose(&Wish::default(), &Machine::of_equal_cores(0));
    assert!(matches!(nothing.unwrap_err(), StartError::Shards(0)));
    let named = Placement::choose(&Wish { cores: Some(Vec::new()), ..Wish::default() }, &machine);
    assert!(matches!(named.unwrap_err(), StartError::Shards(0)));
}

#[test]
fn a_machine_without_files_still_has_its_cores() {
    let placement = choose(&Tree::of(&[]), &[0, 1], &Wish::default());
    assert_eq!(cores(&placement), [0, 1]);
    assert_eq!(placement.shards()[1].l3, None);
}

#[test]
fn the_table_says_where_each_shard_runs_and_why() {
    let wish = Wish { shards: Some(5), idle: Idle::Spin, ..Wish::default() };
    let placement = choose(&eight_threads(&[]), &ALL, &wish).with_runtime(RuntimeKind::Epoll);
    let table = "\
5 shards: as many as were asked for
they wait in: epoll
shard  core  physical   L3  idle  shares
    0     0         0    0  spin  its physical core with shard 2
    1     2         2    0  spin
    2     1         0    0  spin  its physical core with shard 0
    3     4         4    4  spin
    4     6         6    4  spin
";
    assert_eq!(placement.to_string(), table);
}
