//! Reading a JSON object key by key, so that every complaint names the key's path.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::error::{CniError, ErrorCode};

/// A JSON object together with its path in the configuration (`ipam.ranges[0]`; empty for the top).
#[derive(Debug, Clone)]
pub struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The configuration's top.
    pub fn top(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// `value` at `path`, which must be an object.
    ///
    /// # Errors
    /// [`ErrorCode::DECODING_FAILURE`] for any other JSON type; so for every method here where the type is wrong.
    pub fn at(path: String, value: &'a Value) -> Result<Self, CniError> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(wrong_type(&path, "an object", other)),
        }
    }

    /// The path of one of the object's keys.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// All keys with their raw values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The raw value; JSON null counts as absent, as everywhere in CNI. Where the key is not there as it is, one that
    /// differs in case alone serves: the reference plugins read such configurations, and administrators have them.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let similar =
            || self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.map.get(key).or_else(similar).filter(|value| !value.is_null())
    }

    /// A string; absent is `None`.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, CniError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(key), "a string", other)),
        }
    }

    /// A boolean; absent is false.
    pub fn flag(&self, key: &str) -> Result<bool, CniError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(wrong_type(&self.path(key), "true or false", other)),
        }
    }

    /// A whole number between `low` and `high`; absent is `None`.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_NETWORK_CONFIG`] outside of the bounds.
    pub fn number(&self, key: &str, low: i64, high: i64) -> Result<Option<i64>, CniError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_i64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            Some(number) => {
                Err(CniError::config(&self.path(key), format!("{number} is not in {low} to {high}")))
            }
            None if value.is_number() => {
                Err(CniError::config(&self.path(key), format!("{value} is not in {low} to {high}")))
            }
            None => Err(wrong_type(&self.path(key), "a whole number", value)),
        }
    }

    /// A string that is the text of a `T`; absent is `None`, and so is the empty string.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_NETWORK_CONFIG`] when it does not parse; the message shows the text and `what`.
    pub fn parsed<T: FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, CniError> {
        match self.string(key)? {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| CniError::config(&self.path(key), format!("{text:?} is not {what}"))),
        }
    }

    /// A list with the path of each element; absent is empty.
    pub fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, CniError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(value) => elements(&self.path(key), value),
        }
    }

    /// A list of strings; absent is empty.
    pub fn strings(&self, key: &str) -> Result<Vec<String>, CniError> {
        let text = |(path, value): (String, &Value)| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(wrong_type(&path, "a string", other)),
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    /// A nested object; absent is `None`.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>, CniError> {
        self.get(key).map(|value| Object::at(self.path(key), value)).transpose()
    }

    /// Refuses keys that are known elsewhere and not supported here, unless they hold their empty default.
    ///
    /// # Errors
    /// [`ErrorCode::UNSUPPORTED_FIELD`] naming key and value.
    pub fn refuse(&self, keys: &[&str]) -> Result<(), CniError> {
        for key in keys {
            let Some(value) = self.get(key) else { continue };
            let empty = match value {
                Value::Bool(on) => !on,
                Value::Number(number) => number.as_i64() == Some(0),
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Null => true,
            };
            if !empty {
                return Err(CniError::unsupported(&self.path(key), value));
            }
        }
        Ok(())
    }
}

/// The elements of a JSON list with their paths.
///
/// # Errors
/// [`ErrorCode::DECODING_FAILURE`] when `value` is no list.
pub fn elements<'a>(path: &str, value: &'a Value) -> Result<Vec<(String, &'a Value)>, CniError> {
    match value {
        Value::Array(list) => {
            Ok(list.iter().enumerate().map(|(index, value)| (format!("{path}[{index}]"), value)).collect())
        }
        other => Err(wrong_type(path, "a list", other)),
    }
}

/// The error for a value of the wrong JSON type.
pub fn wrong_type(path: &str, expected: &str, found: &Value) -> CniError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let place = if path.is_empty() { "network configuration" } else { path };
    CniError::new(ErrorCode::DECODING_FAILURE, format!("{place}: expected {expected}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn complaints_name_the_path() {
        let value = json!({"a": {"b": 3, "s": "x", "n": null, "l": [1, {}], "big": 1e300}});
        let top = Object::at(String::new(), &value).unwrap();
        let a = top.object("a").unwrap().unwrap();
        let check = |error: CniError, code: ErrorCode, msg: &str| {
            assert_eq!((error.code, error.msg.as_str()), (code, msg));
        };
        let decode = ErrorCode::DECODING_FAILURE;
        let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
        check(a.string("b").unwrap_err(), decode, "a.b: expected a string, found a number");
        check(a.flag("s").unwrap_err(), decode, "a.s: expected true or false, found a string");
        check(a.number("b", 4, 9).unwrap_err(), invalid, "a.b: 3 is not in 4 to 9");
        check(a.number("big", 4, 9).unwrap_err(), invalid, "a.big: 1e+300 is not in 4 to 9");
        check(a.parsed::<u8>("s", "an octet").unwrap_err(), invalid, "a.s: \"x\" is not an octet");
        check(a.strings("l").unwrap_err(), decode, "a.l[0]: expected a string, found a number");
        check(a.refuse(&["n", "b"]).unwrap_err(), ErrorCode::UNSUPPORTED_FIELD, "a.b: 3 is not supported");
        check(top.list("a").unwrap_err(), decode, "a: expected a list, found an object");
        assert_eq!(a.string("n").unwrap(), None);
        assert_eq!(a.number("b", 0, 9).unwrap(), Some(3));
    }
}
