//! The day a case is of: what a split by time goes by.

use std::fmt;

/// Days between 1899-12-30, where spreadsheets count from, and 1970-01-01.
const SPREADSHEET_OFFSET: i32 = 25_569;

/// A day of the calendar, in whatever zone it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i32); // Days since 1970-01-01.

impl Day {
    /// The day `text` names: `2026-08-01`, `2026/8/1`, `2026.8.1` or `2026年8月1日`, each with or without a
    /// time after it, or a spreadsheet's day number. None for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let number = text.split_once('.').map_or(text, |it| it.0);
        // 1954 to 2119: no shorter number is a day, no longer one either.
        if number.len() == 5 && number.bytes().all(|it| it.is_ascii_digit()) {
            let days: i32 = number.parse().ok().filter(|it| (20_000..80_000).contains(it))?;
            let is_fraction = text[number.len()..].bytes().skip(1).all(|it| it.is_ascii_digit());
            return is_fraction.then_some(Self(days - SPREADSHEET_OFFSET));
        }
        let mut rest = text;
        let mut parts = [0_i32; 3];
        for (idx, part) in parts.iter_mut().enumerate() {
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let fits = if idx == 0 { n_digits == 4 } else { (1..=2).contains(&n_digits) };
            if !fits {
                return None;
            }
            *part = rest[..n_digits].parse().ok()?;
            rest = &rest[n_digits..];
            let ends = [['-', '/', '.', '年'].as_slice(), &['-', '/', '.', '月'], &['日']][idx];
            match rest.strip_prefix(ends) {
                Some(after) => rest = after,
                None if idx < 2 => return None,
                None => {}
            }
        }
        // What follows may be a time, nothing else.
        let is_time = rest.is_empty()
            || rest.starts_with(['T', ' '])
                && rest[1..].trim_start().starts_with(|it: char| it.is_ascii_digit());
        if !is_time {
            return None;
        }
        let day = Self::of(parts[0], parts[1], parts[2]);
        // A day the month does not have comes back as another.
        (day.parts() == (parts[0], parts[1], parts[2])).then_some(day)
    }

    /// Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    fn of(year: i32, month: i32, day: i32) -> Self {
        let year = if month <= 2 { year - 1 } else { year };
        let era = year.div_euclid(400);
        let of_era = year.rem_euclid(400);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        Self(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
    }

    /// Year, month and day; `civil_from_days` of the same source.
    fn parts(self) -> (i32, i32, i32) {
        let days = self.0 + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (year + era * 400 + i32::from(month <= 2), month, day)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.parts();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_however_they_are_written() {
        for text in [
            "2026-08-01",
            "2026/8/1",
            "2026.8.1",
            "2026年8月1日",
            " 2026-08-01T09:30:00+08:00 ",
            "2026-8-1 9:30",
            "46235",
            "46235.4",
        ] {
            assert_eq!(Day::parse(text).expect(text).to_string(), "2026-08-01", "{text}");
        }
        assert_eq!(Day::parse("2024-02-29").unwrap().to_string(), "2024-02-29");
        for text in [
            "",
            "昨天",
            "2026-13-01",
            "2026-02-29",
            "26-08-01",
            "2026-08",
            "2026-08-01x",
            "1",
            "99999",
        ] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }

    #[test]
    fn days_come_in_order() {
        let days: Vec<Day> = (-400_000..400_000).step_by(97).map(Day).collect();
        for day in &days {
            let (year, month, of_month) = day.parts();
            assert_eq!(Day::of(year, month, of_month), *day);
        }
        assert!(Day::parse("2025-12-31") < Day::parse("2026-01-01"));
    }
}
