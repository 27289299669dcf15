//! Days and times of day, in UTC, as the trail writes them.

/// A day of the calendar, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Day {
    /// Year, from 1970 on.
    pub year: u64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
}

const DAY_MS: u64 = 86_400_000;

impl Day {
    /// The day of this moment, in milliseconds since 1970-01-01 00:00.
    pub fn of_ms(ms: u64) -> Day {
        // Years are counted from 1 March 0000, so that the leap day is the last one of its year: then months have the
        // lengths of a pattern that repeats every five, 153 days, and 400 years have 146,097 days.
        let days = ms / DAY_MS + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Day { year, month: month as u8, day: day as u8 }
    }

    /// The day that `text` names as `YYYY-MM-DD`, if there is one.
    pub fn parse(text: &str) -> Option<Day> {
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = |part: &str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || !digits(year, 4) || !digits(month, 2) || !digits(day, 2) {
            return None;
        }
        let day = Day { year: year.parse().ok()?, month: month.parse().ok()?, day: day.parse().ok()? };
        let leap = day.year.is_multiple_of(4) && (!day.year.is_multiple_of(100) || day.year.is_multiple_of(400));
        let days = match day.month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (day.year >= 1970 && (1..=days).contains(&day.day)).then_some(day)
    }

    /// Days since 1970-01-01.
    #[cfg(feature = "trail")]
    fn days(self) -> u64 {
        // As in `of_ms`: years begin in March.
        let year = self.year - u64::from(self.month <= 2);
        let month_from_march = (u64::from(self.month) + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + u64::from(self.day) - 1;
        365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
    }

    /// The folder of this day: `YYYY/MM/DD`.
    #[cfg(feature = "trail")]
    pub(super) fn folder(self) -> String {
        format!("{:04}/{:02}/{:02}", self.year, self.month, self.day)
    }
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// This moment as `YYYY-MM-DDTHH:MM:SS.mmmZ`, which sorts as time does.
pub(super) fn timestamp(ms: u64) -> String {
    let of_day = ms % DAY_MS;
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    format!("{}T{hours:02}:{minutes:02}:{:02}.{:03}Z", Day::of_ms(ms), of_day / 1000 % 60, of_day % 1000)
}

/// The moment that [`timestamp`] writes so.
#[cfg(feature = "trail")]
pub(super) fn parse_timestamp(text: &str) -> Option<u64> {
    let (day, time) = text.split_once('T')?;
    let day = Day::parse(day)?;
    let time = time.strip_suffix('Z')?;
    if time.len() != 12
        || !time.bytes().enumerate().all(|(at, byte)| match at {
            2 | 5 => byte == b':',
            8 => byte == b'.',
            _ => byte.is_ascii_digit(),
        })
    {
        return None;
    }
    let number = |range: std::ops::Range<usize>| time[range].parse::<u64>().ok();
    let of_day = ((number(0..2)? * 60 + number(3..5)?) * 60 + number(6..8)?) * 1000 + number(9..12)?;
    let ms = day.days() * DAY_MS + of_day;
    (timestamp(ms) == text).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_falls_on_the_day_that_the_calendar_says() {
        // A record in another day's folder is missed by whoever asks for that day.
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (86_399_999, "1970-01-01T23:59:59.999Z"),
            (86_400_000, "1970-01-02T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(ms), expected);
            assert_eq!(Day::parse(&expected[..10]), Some(Day::of_ms(ms)));
            #[cfg(feature = "trail")]
            assert_eq!(parse_timestamp(expected), Some(ms));
        }
    }

    #[test]
    fn a_day_that_does_not_exist_is_refused() {
        for text in [
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-1-01",
            "2026-01-32",
            "1969-12-31",
            "2026-01-01-01",
            "+026-01-01",
            "",
        ] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }
}
