//! Spans and events for [`tracing`](https://docs.rs/tracing), if the feature of that name is on; otherwise nothing at all.
//!
//! ```text
//! INFO   create, open (recovery)           what was found
//!        stall                             what writers wait for
//!        what an EventSink hears           heard(): refused keys, rotations, drops, damage
//! DEBUG  flush, compaction, rewrite        spans over all steps of a job, and an event with what came of it
//!        provider                          a request, and its outcome
//! TRACE  group                             a group of commits: log, memtables, visibility
//!        sync                              the log is made durable
//! ```
//! What a span or an event says is a number, a fixed word or a table's id: that is all that the macros take. So no key, value, table name,
//! principal or key material can get into anybody's log by this way.

#[cfg(feature = "tracing")]
mod on {
    use std::sync::Arc;

    use crate::event::{Event, EventSink};
    use crate::types::TableId;

    /// Begin a span.
    macro_rules! span {
        ($level:ident, $name:literal $(, table = $table:expr)? $(; $($field:ident = $value:expr),+)?) => {
            $crate::trace::Span::new(tracing::span!(
                target: "strongroom", tracing::Level::$level, $name
                $(, table = $crate::trace::named($table))?
                $($(, $field = $crate::trace::plain($value))+)?
            ))
        };
    }

    /// Tell of something that happened.
    macro_rules! event {
        ($level:ident, $what:literal $(, table = $table:expr)? $(; $($field:ident = $value:expr),+)?) => {
            tracing::event!(
                target: "strongroom", tracing::Level::$level,
                $(table = $crate::trace::named($table),)?
                $($($field = $crate::trace::plain($value),)+)?
                $what
            )
        };
    }

    pub(crate) use event;
    pub(crate) use span;

    /// What may stand in a field besides a table's id.
    pub(crate) trait Plain: tracing::Value {}
    impl Plain for u64 {}
    impl Plain for bool {}
    impl Plain for &'static str {}

    pub(crate) fn plain<T: Plain>(value: T) -> T {
        value
    }

    /// A table, by its id and nothing else.
    pub(crate) fn named(table: TableId) -> tracing::field::DisplayValue<TableId> {
        tracing::field::display(table)
    }

    /// A piece of work, in steps perhaps.
    pub(crate) struct Span(tracing::Span);

    impl Span {
        pub(crate) fn new(span: tracing::Span) -> Span {
            Span(span)
        }

        /// Within it until the result is dropped.
        pub(crate) fn entered(&self) -> impl Drop + use<> {
            self.0.clone().entered()
        }
    }

    /// `sink`, of which `tracing` hears everything too.
    pub(crate) fn heard(sink: Arc<dyn EventSink>) -> Arc<dyn EventSink> {
        Arc::new(Heard(sink))
    }

    #[derive(Debug)]
    struct Heard(Arc<dyn EventSink>);

    impl EventSink for Heard {
        fn event(&self, event: &Event) {
            tell(event);
            self.0.event(event);
        }
    }

    /// Principals, reasons in words and names of files are left to those who asked for them.
    fn tell(event: &Event) {
        match event {
            Event::KeyUnwrapped { table, generation } => {
                event!(DEBUG, "key unwrapped", table = *table; generation = u64::from(generation.0));
            }
            Event::PermitRefreshed { table, .. } => event!(DEBUG, "permit renewed", table = *table),
            Event::PermitEnded { table, .. } => event!(DEBUG, "permit ended", table = *table),
            Event::StaleBegan { table, limit_ms, .. } => {
                event!(WARN, "permit used beyond its end", table = *table; limit_ms = *limit_ms);
            }
            Event::StaleEnded { table, .. } => event!(INFO, "permit no longer used beyond its end", table = *table),
            Event::TablePurged { table } => event!(DEBUG, "table put away", table = *table),
            Event::TableInaccessible { table, since_ms, .. } => {
                event!(WARN, "table inaccessible", table = *table; since_ms = *since_ms);
            }
            Event::TableAccessible { table } => event!(INFO, "table accessible again", table = *table),
            Event::StoreInaccessible { since_ms, .. } => event!(ERROR, "store inaccessible"; since_ms = *since_ms),
            Event::StoreAccessible => event!(INFO, "store accessible again"),
            Event::TableShredded { table } => event!(INFO, "table shredded", table = *table),
            Event::TrailFailed { lost, .. } => event!(ERROR, "trail not written"; lost = *lost),
            Event::TableRekeyed { table, generation } => {
                event!(INFO, "table rekeyed", table = *table; generation = u64::from(generation.0));
            }
            Event::GenerationsErased { table, oldest } => {
                event!(INFO, "old generations erased", table = *table; oldest = u64::from(oldest.0));
            }
            Event::RotationFailed { table, .. } => event!(WARN, "rotation failed", table = *table),
            // There is a span around it.
            Event::StallBegan | Event::StallEnded { .. } => {}
            Event::TailDiscarded { offset_bytes, len_bytes, .. } => {
                event!(WARN, "end of the log discarded"; offset_bytes = *offset_bytes, len_bytes = *len_bytes);
            }
            Event::DiskFull { free_bytes, needed_bytes } => {
                event!(WARN, "disk full"; free_bytes = *free_bytes, needed_bytes = *needed_bytes);
            }
            Event::DiskHasRoom { free_bytes } => event!(INFO, "disk has room again"; free_bytes = *free_bytes),
            Event::KeyFileCopyDamaged { .. } => event!(WARN, "copy in a key file damaged"),
            Event::OrphanSetAside { .. } => event!(WARN, "orphan set aside"),
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    /// Begin a span: nothing, and what would be said in it is not evaluated.
    macro_rules! span {
        ($level:ident, $name:literal $(, table = $table:expr)? $(; $($field:ident = $value:expr),+)?) => {{
            $(let _ = || -> $crate::types::TableId { $table };)?
            $($(let _ = || $crate::trace::plain($value);)+)?
            $crate::trace::Span
        }};
    }

    /// Tell of something that happened: nothing, and what would be said of it is not evaluated.
    macro_rules! event {
        ($level:ident, $what:literal $(, table = $table:expr)? $(; $($field:ident = $value:expr),+)?) => {{
            $(let _ = || -> $crate::types::TableId { $table };)?
            $($(let _ = || $crate::trace::plain($value);)+)?
        }};
    }

    pub(crate) use event;
    pub(crate) use span;

    /// What may stand in a field besides a table's id: the same as with the feature, so that both builds take the same.
    pub(crate) trait Plain {}
    impl Plain for u64 {}
    impl Plain for bool {}
    impl Plain for &'static str {}

    pub(crate) fn plain<T: Plain>(value: T) -> T {
        value
    }

    /// A piece of work.
    pub(crate) struct Span;

    /// Being within it.
    #[must_use]
    pub(crate) struct Entered;

    impl Span {
        pub(crate) fn entered(&self) -> Entered {
            Entered
        }
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) use off::*;
#[cfg(feature = "tracing")]
pub(crate) use on::*;
