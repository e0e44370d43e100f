//! The demo's result: what was expected and what is.

use std::fmt;

/// One promise that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was looked at.
    pub what: String,
    /// What it had to be.
    pub expected: String,
    /// What it was.
    pub is: String,
}

impl Row {
    /// Whether it was as expected.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.expected == self.is
    }
}

/// All that was looked at, in the order of the story.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The rows.
    pub rows: Vec<Row>,
    /// What is worth a look besides, and where it is; printed after the rows.
    pub besides: String,
}

impl Table {
    /// Whether everything was as expected, and anything was looked at.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::ok)
    }
}

const WHAT_WIDTH: usize = 47;
const VALUE_WIDTH: usize = 22;

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:WHAT_WIDTH$}  {:VALUE_WIDTH$}  {:VALUE_WIDTH$}  ok", "what", "expected", "is")?;
        writeln!(out, "{:-<WHAT_WIDTH$}  {:-<VALUE_WIDTH$}  {:-<VALUE_WIDTH$}  --", "", "", "")?;
        for row in &self.rows {
            let mark = if row.ok() { "yes" } else { "NO" };
            let (what, expected, is) = (&row.what, &row.expected, &row.is);
            writeln!(out, "{what:WHAT_WIDTH$}  {expected:VALUE_WIDTH$}  {is:VALUE_WIDTH$}  {mark}")?;
        }
        let good = self.rows.iter().filter(|row| row.ok()).count();
        write!(out, "{good} of {} as expected", self.rows.len())?;
        if self.besides.is_empty() { Ok(()) } else { write!(out, "\n\n{}", self.besides) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(expected: &str, is: &str) -> Row {
        Row { what: "w".repeat(WHAT_WIDTH), expected: expected.to_owned(), is: is.to_owned() }
    }

    #[test]
    fn a_table_fits_a_hundred_columns_and_says_no_loudly() {
        let rows = vec![row("2026-12-29T12:00:00Z", "grace, allowed"), row("1", "1")];
        let table = Table { rows, besides: String::new() };
        let text = table.to_string();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(text.contains("NO\n") && text.ends_with("1 of 2 as expected"), "{text}");
        assert!(!table.ok());
        let table = Table { besides: "E-mails: none".to_owned(), ..table };
        assert!(table.to_string().ends_with("1 of 2 as expected\n\nE-mails: none"));
    }

    #[test]
    fn nothing_looked_at_is_not_well() {
        assert!(!Table::default().ok());
        assert!(Table { rows: vec![row("1", "1")], ..Table::default() }.ok());
    }
}
