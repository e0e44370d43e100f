//! Stripe's form encoding: nested brackets in bodies and queries, and a reader that notices what nobody asked for.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ApiError;

/// The parameters of one request, flat, under their full bracketed names (`items[0][price]`).
///
/// Every read marks its name. [`Params::finish`] then refuses whatever was not read, which is how unknown parameters get
/// Stripe's `parameter_unknown` without any route having to list what it does not support.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    entries: BTreeMap<String, String>,
    read: BTreeSet<String>,
    accepted: bool,
}

/// A change to an object's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MetadataChange {
    clear: bool,
    set: BTreeMap<String, String>,
}

impl MetadataChange {
    /// Applies the change; an empty value removes its key. Source: API reference, "Metadata".
    pub(crate) fn apply(&self, metadata: &mut BTreeMap<String, String>) {
        if self.clear {
            metadata.clear();
        }
        for (key, value) in &self.set {
            if value.is_empty() {
                metadata.remove(key);
            } else {
                metadata.insert(key.clone(), value.clone());
            }
        }
    }

    /// The metadata of a new object.
    pub(crate) fn into_new(self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        self.apply(&mut metadata);
        metadata
    }
}

/// A filter on a timestamp: `created=…` or `created[gte]=…` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeRange {
    from: i64,
    to: i64,
}

impl TimeRange {
    /// Whether `at` passes the filter.
    pub(crate) fn contains(&self, at: i64) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

impl Params {
    /// Parses a query and a body; both may be empty (a client may send a bare trailing `?`).
    pub(crate) fn parse(query: &str, body: &str) -> Result<Self, ApiError> {
        let mut entries = BTreeMap::new();
        let mut appended: BTreeMap<String, usize> = BTreeMap::new();
        for pair in query.split('&').chain(body.split('&')) {
            if pair.is_empty() {
                continue;
            }
            let (raw_key, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
            let mut key = decode(raw_key)?;
            let value = decode(raw_value)?;
            if let Some(list) = key.strip_suffix("[]") {
                let index = appended.entry(list.to_owned()).or_default();
                let name = format!("{list}[{index}]");
                *index += 1;
                key = name;
            }
            if !well_formed(&key) {
                return Err(ApiError::unknown_params(&[key]));
            }
            // Rack lets the last of two equal names win; a client that sends both is wrong, so we are stricter.
            if entries.insert(key.clone(), value).is_some() {
                return Err(ApiError::invalid_param(&key, format!("Received the parameter {key} more than once.")));
            }
        }
        Ok(Self { entries, ..Self::default() })
    }

    /// All parameters; two requests with equal maps are the same request, in whatever order they named them.
    pub(crate) fn entries(&self) -> &BTreeMap<String, String> {
        &self.entries
    }

    /// A value without marking it as read.
    pub(crate) fn peek(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(String::as_str)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let value = self.entries.get(name)?;
        self.read.insert(name.to_owned());
        Some(value.clone())
    }

    /// An optional text that cannot be unset.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            Some(value) if value.is_empty() => Err(ApiError {
                code: Some("parameter_invalid_empty"),
                ..ApiError::invalid_param(
                    name,
                    format!(
                        "You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; \
                         however '{name}' cannot be unset. You should remove '{name}' from your request or supply a non-empty value."
                    ),
                )
            }),
            other => Ok(other),
        }
    }

    /// A text that may be unset by an empty value: absent, unset, or set.
    pub(crate) fn unsettable(&mut self, name: &str) -> Option<Option<String>> {
        self.take(name).map(|value| (!value.is_empty()).then_some(value))
    }

    /// A required text.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, ApiError> {
        self.text(name)?.ok_or_else(|| ApiError::missing(name))
    }

    /// An optional whole number.
    pub(crate) fn int(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.text(name)?
            .map(|text| {
                text.parse().map_err(|_| ApiError {
                    code: Some("parameter_invalid_integer"),
                    ..ApiError::invalid_param(name, format!("Invalid integer: {text}"))
                })
            })
            .transpose()
    }

    /// A required whole number.
    pub(crate) fn required_int(&mut self, name: &str) -> Result<i64, ApiError> {
        self.int(name)?.ok_or_else(|| ApiError::missing(name))
    }

    /// An optional boolean: `true` or `false`, nothing else.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name)?.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(ApiError::invalid_param(name, format!("Invalid boolean: {other}"))),
        }
    }

    /// An optional text out of a fixed list.
    pub(crate) fn one_of(&mut self, name: &str, allowed: &[&str]) -> Result<Option<String>, ApiError> {
        let value = self.text(name)?;
        if let Some(text) = &value
            && !allowed.contains(&text.as_str())
        {
            return Err(ApiError::invalid_param(name, format!("Invalid {name}: must be one of {}", allowed.join(", "))));
        }
        Ok(value)
    }

    /// The names of a list's elements, in the order of their indices: `items` gives `items[0]`, `items[1]`, …
    pub(crate) fn elements(&self, name: &str) -> Vec<String> {
        let mut indices: Vec<usize> = self
            .entries
            .keys()
            .filter_map(|key| {
                let rest = key.strip_prefix(name)?.strip_prefix('[')?;
                rest.split_once(']')?.0.parse().ok()
            })
            .collect();
        indices.sort_unstable();
        indices.dedup();
        indices.into_iter().map(|index| format!("{name}[{index}]")).collect()
    }

    /// A list of texts: `expand[]=…` or `expand[0]=…`.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::new();
        for element in self.elements(name) {
            texts.extend(self.text(&element)?);
        }
        Ok(texts)
    }

    /// Whether anything was sent under `name`: itself, or below it.
    pub(crate) fn has_below(&self, name: &str) -> bool {
        self.entries.keys().any(|key| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('[')))
    }

    /// A map of texts below `name`, as `payload[value]=…`.
    pub(crate) fn map(&mut self, name: &str) -> BTreeMap<String, String> {
        let keys: Vec<String> = self
            .entries
            .keys()
            .filter_map(|key| {
                let rest = key.strip_prefix(name)?.strip_prefix('[')?;
                let inner = rest.strip_suffix(']')?;
                (!inner.contains('[')).then(|| inner.to_owned())
            })
            .collect();
        keys.into_iter()
            .filter_map(|key| {
                let value = self.take(&format!("{name}[{key}]"))?;
                Some((key, value))
            })
            .collect()
    }

    /// Metadata with Stripe's limits: 50 keys, 40 characters a key, 500 a value. Source: API reference, "Metadata".
    pub(crate) fn metadata(&mut self, name: &str) -> Result<MetadataChange, ApiError> {
        let clear = match self.take(name) {
            None => false,
            Some(value) if value.is_empty() => true,
            Some(_) => {
                return Err(ApiError::invalid_param(name, "Metadata must be a map of names to texts."));
            }
        };
        let set = self.map(name);
        if set.len() > 50 {
            return Err(ApiError::invalid_param(name, "Metadata can have at most 50 keys."));
        }
        for (key, value) in &set {
            if key.chars().count() > 40 || value.chars().count() > 500 {
                return Err(ApiError::invalid_param(
                    &format!("{name}[{key}]"),
                    "Metadata keys can have at most 40 characters, and values at most 500.",
                ));
            }
        }
        Ok(MetadataChange { clear, set })
    }

    /// A filter on a timestamp, if one was given.
    pub(crate) fn time_range(&mut self, name: &str) -> Result<Option<TimeRange>, ApiError> {
        if let Some(at) = self.int(name)? {
            return Ok(Some(TimeRange { from: at, to: at }));
        }
        let mut range = TimeRange { from: i64::MIN, to: i64::MAX };
        let mut given = false;
        for (operator, inclusive) in [("gte", true), ("gt", false), ("lte", true), ("lt", false)] {
            let Some(at) = self.int(&format!("{name}[{operator}]"))? else {
                continue;
            };
            given = true;
            let shift = i64::from(!inclusive);
            if operator.starts_with('g') {
                range.from = range.from.max(at.saturating_add(shift));
            } else {
                range.to = range.to.min(at.saturating_sub(shift));
            }
        }
        Ok(given.then_some(range))
    }

    /// Refuses what was sent and not read. Call it before anything is changed.
    pub(crate) fn finish(&mut self) -> Result<(), ApiError> {
        let unknown: Vec<String> = self.entries.keys().filter(|key| !self.read.contains(*key)).cloned().collect();
        self.accepted = unknown.is_empty();
        if self.accepted { Ok(()) } else { Err(ApiError::unknown_params(&unknown)) }
    }

    /// Whether [`Params::finish`] found nothing wrong: from then on the call is being executed.
    pub(crate) fn are_accepted(&self) -> bool {
        self.accepted
    }
}

/// `name`, then any number of `[key]`.
fn well_formed(key: &str) -> bool {
    let (name, mut rest) = match key.find('[') {
        Some(at) => key.split_at(at),
        None => (key, ""),
    };
    if name.is_empty() || name.contains(']') {
        return false;
    }
    while let Some(inner) = rest.strip_prefix('[') {
        match inner.split_once(']') {
            Some((segment, tail)) if !segment.is_empty() && !segment.contains('[') => rest = tail,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// Decodes `+` and percent escapes; anything that is not UTF-8 in the end is refused.
fn decode(text: &str) -> Result<String, ApiError> {
    let refused = || ApiError::invalid("Invalid form encoding.");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().ok_or_else(refused)?, rest.next().ok_or_else(refused)?];
                bytes.extend(hex::decode(digits).map_err(|_| refused())?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(body: &str) -> Params {
        Params::parse("", body).unwrap()
    }

    #[test]
    fn nested_brackets_are_read_by_their_full_names() {
        let mut p = params("items[0][price]=price_a&items[1][price]=price_b&metadata[user_id]=ada%20l+x&name=caf%C3%A9");
        assert_eq!(p.elements("items"), ["items[0]", "items[1]"]);
        assert_eq!(p.text("items[1][price]").unwrap().unwrap(), "price_b");
        assert_eq!(p.text("items[0][price]").unwrap().unwrap(), "price_a");
        assert_eq!(p.text("name").unwrap().unwrap(), "café");
        let metadata = p.metadata("metadata").unwrap().into_new();
        assert_eq!(metadata.get("user_id").unwrap(), "ada l x");
        p.finish().unwrap();
    }

    #[test]
    fn both_spellings_of_a_list_are_the_same() {
        for body in [
            "expand[]=customer&expand[]=latest_invoice",
            "expand[0]=customer&expand[1]=latest_invoice",
            "expand%5B%5D=customer&expand%5B%5D=latest_invoice",
        ] {
            assert_eq!(params(body).texts("expand").unwrap(), ["customer", "latest_invoice"]);
        }
    }

    #[test]
    fn more_than_ten_elements_keep_their_order() {
        let body: Vec<String> = (0..12).map(|n| format!("expand[{n}]=e{n}")).collect();
        let texts = params(&body.join("&")).texts("expand").unwrap();
        assert_eq!(texts.last().unwrap(), "e11");
    }

    #[test]
    fn what_nobody_read_is_unknown() {
        let mut p = params("email=a&colour=blue&items[0][colour]=red");
        p.text("email").unwrap();
        let error = p.finish().unwrap_err();
        assert_eq!(error.code, Some("parameter_unknown"));
        assert_eq!(error.message, "Received unknown parameters: colour, items[0][colour]");
    }

    #[test]
    fn malformed_input_is_refused() {
        for body in ["a[=1", "a]=1", "[a]=1", "a[][b]=1", "a=%zz", "a=%f", "a=%ff", "a=1&a=2"] {
            assert!(Params::parse("", body).is_err(), "{body}");
        }
    }

    #[test]
    fn an_empty_query_and_a_bare_question_mark_mean_nothing() {
        assert!(Params::parse("", "").unwrap().entries().is_empty());
    }

    #[test]
    fn empty_values_unset_only_what_can_be_unset() {
        let mut p = params("email=&name=");
        assert_eq!(p.unsettable("email"), Some(None));
        assert_eq!(p.text("name").unwrap_err().code, Some("parameter_invalid_empty"));
    }

    #[test]
    fn time_filters_are_inclusive_or_not() {
        let range = params("created[gt]=10&created[lte]=20").time_range("created").unwrap().unwrap();
        assert!(!range.contains(10));
        assert!(range.contains(11));
        assert!(range.contains(20));
        assert!(!range.contains(21));
    }

    #[test]
    fn numbers_and_booleans_are_strict() {
        let mut p = params("limit=1.5&flag=yes");
        assert!(p.int("limit").is_err());
        assert!(p.boolean("flag").is_err());
    }
}
