//! YAML as a value that is bounded, whatever its aliases stand for.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most that a document may come to once its aliases are written out: bytes of its scalars, and some for each value.
const EXPANDED: usize = 8 << 20;
/// What a value costs beside its bytes.
const EACH: usize = 16;
/// Deepest nesting of brackets. The scanner's time grows with the square of it.
const NESTING: usize = 1000;

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    check_nesting(text)?;
    let left = Cell::new(EXPANDED);
    let document = yaml_serde::Deserializer::from_str(text);
    Bounded(&left).deserialize(document).map_err(|error| error.to_string())
}

/// Counts brackets wherever they stand: a file that has this many in its strings is not one that anybody wrote.
fn check_nesting(text: &str) -> Result<(), String> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING {
            return Err(format!("brackets are nested deeper than {NESTING}"));
        }
    }
    Ok(())
}

/// Any value, while what is left of the bound lasts.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    fn spend<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes + EACH);
        self.0.set(left.ok_or_else(|| E::custom(format!("it comes to more than {EXPANDED} bytes")))?);
        Ok(())
    }

    fn scalar<E: Error>(self, value: Value) -> Result<Value, E> {
        self.spend(value.as_str().map_or(0, str::len))?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        self.scalar(Value::Number(number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.spend(key.len())?;
            let value = entries.next_value_seed(self)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("key {key:?} is there twice")));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_those_of_yaml() {
        let check = |text: &str, expect: Value| assert_eq!(parse(text).unwrap(), expect, "{text}");
        check("a: 1\nb: [x, 'y', \"z\"]\n", json!({"a": 1, "b": ["x", "y", "z"]}));
        check("{\"a\": true, \"b\": null}", json!({"a": true, "b": null}));
        check("a: &x {b: -1}\nc: *x\n", json!({"a": {"b": -1}, "c": {"b": -1}}));
        check("m: 0660\n# comment\n", json!({"m": "0660"}));
    }

    #[test]
    fn what_is_unbounded_or_ambiguous_is_refused() {
        let check = |text: &str, word: &str| {
            let error = parse(text).expect_err(text.get(..40).unwrap_or(text));
            assert!(error.contains(word), "{error}");
        };
        check("a: 1\na: 2\n", "twice");
        check("a: 1\n---\nb: 2\n", "more than one document");
        check("a: !tag {}\n", "tag");
        check("a: .nan\n", "finite");
        check("a: [", "");
        check("? [a]\n: b\n", "");
        check(&"[".repeat(1 << 20), "nested");
        check(&("a: ".to_string() + &"[".repeat(500) + &"]".repeat(500)), "recursion");
        let long = format!("a: &x {}\nb: [{}]\n", "y".repeat(500_000), "*x, ".repeat(1000));
        check(&long, "more than 8388608 bytes");
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..10 {
            let aliases = format!("*a{}, ", n - 1).repeat(10);
            laughs.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
        }
        check(&laughs, "");
    }
}
