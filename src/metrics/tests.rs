//! Claims about counting.

use super::*;

#[test]
fn threads_lose_no_count() {
    // A lost count would make a figure that is compared with another one lie.
    let meters = Meters::new();
    let count = || (0..10_000).for_each(|_| _ = meters.count(Count::Puts, 1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    // Those have ended, and the next go on with their tallies.
    let tallies = meters.counters.tallies();
    std::thread::scope(|scope| scope.spawn(count).join().unwrap());
    assert_eq!(meters.metrics().writes.puts, 50_000);
    assert_eq!(meters.counters.tallies(), tallies, "a thread that comes later takes over from one that has ended");
}

#[test]
fn stores_are_told_apart_by_a_thread_that_works_with_many() {
    // One tenant's figures would show in another's.
    let stores: Vec<Meters> = (0..20).map(|_| Meters::new()).collect();
    for round in 0..3 {
        for (index, store) in stores.iter().enumerate() {
            assert_eq!(store.count(Count::Puts, index as u64), round * index as u64);
        }
    }
    for (index, store) in stores.iter().enumerate() {
        assert_eq!(store.counters.sums()[Count::Puts as usize], 3 * index as u64);
        assert_eq!(store.counters.tallies(), 1);
    }
    // One that was made where another lay begins at nothing.
    drop(stores);
    for _ in 0..100 {
        let meters = Meters::new();
        assert_eq!(meters.count(Count::Puts, 1), 0);
    }
}

#[test]
fn a_count_within_a_count_is_not_lost() {
    // What is counted while something else is being counted must not be dropped silently.
    let (one, other) = (Meters::new(), Meters::new());
    one.tally(|tally| {
        other.count(Count::Puts, 2);
        one.count(Count::Puts, 3);
        tally.add(Count::Puts, 4)
    });
    assert_eq!((one.metrics().writes.puts, other.metrics().writes.puts), (7, 2));
}

#[test]
fn a_count_from_a_thread_that_is_ending_is_not_lost() {
    // A store that a thread's own variable keeps open is closed when the thread is almost gone.
    struct Counts(std::sync::Arc<Meters>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.count(Count::Deletes, 1);
        }
    }
    thread_local!(static LAST: std::cell::RefCell<Option<Counts>> = const { std::cell::RefCell::new(None) });
    let meters = std::sync::Arc::new(Meters::new());
    let own = meters.clone();
    std::thread::spawn(move || {
        LAST.with(|last| *last.borrow_mut() = Some(Counts(own.clone())));
        own.count(Count::Deletes, 1);
    })
    .join()
    .unwrap();
    assert_eq!(meters.metrics().writes.deletes, 2);
}

#[test]
fn every_figure_is_listed_once_with_its_kind() {
    // A program that passes figures on would miss one, or add two up.
    let list = Meters::new().metrics().list();
    let mut names: Vec<_> = list.iter().map(|metric| metric.name.as_str()).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
    for metric in &list {
        let is_distribution = matches!(metric.value, MetricValue::Distribution(_));
        assert_eq!(metric.kind == MetricKind::Distribution, is_distribution, "{}", metric.name);
    }
}

#[test]
fn a_difference_subtracts_counters_and_keeps_gauges() {
    // A gauge that is subtracted would show memory that is not there.
    let meters = Meters::new();
    meters.count(Count::Puts, 5);
    meters.get_ns.record(100);
    let mut earlier = meters.metrics();
    earlier.cache.bytes = 10;
    meters.count(Count::Puts, 2);
    meters.read(Count::level(3), &Probes::default());
    let mut later = meters.metrics();
    later.cache.bytes = 7;
    let since = later.since(&earlier);
    assert_eq!((since.writes.puts, since.cache.bytes, since.reads.sampled_ns.count()), (2, 7, 0));
    assert_eq!(since.reads.level, [0, 0, 0, 1, 0, 0, 0]);
}
