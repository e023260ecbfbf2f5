//! Finds the one message worth showing in what an OCI runtime left behind: its JSON log, or its standard error.
//! Both are bounded, and made printable: parts of them come from images.

/// Longest message kept, bytes.
const MAX_MESSAGE: usize = 4096;

/// The last error of a JSON log (`msg` by crun and runc, `message` by youki, in `fields` or not), else
/// the last line of `stderr`, or the last error there with its causes.
pub fn message(log: &str, stderr: &str) -> Option<String> {
    let entries: Vec<(bool, String)> = log.lines().filter_map(entry).collect();
    if let Some((_, text)) = entries.iter().rev().find(|(is_error, _)| *is_error) {
        return Some(printable(text));
    }
    let caused = with_causes(stderr);
    let said = caused.as_deref().or(last_line(stderr));
    let text = said.or_else(|| entries.last().map(|(_, text)| text.as_str())).or(last_line(log))?;
    Some(printable(text))
}

/// An error and its causes on one line, where a text of a Rust program lists them on several.
fn with_causes(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let heading = lines.iter().rposition(|line| *line == "Caused by:")?;
    let error = lines[..heading].last()?;
    let mut chain = error.strip_prefix("Error: ").unwrap_or(error).to_owned();
    for cause in lines[heading + 1..].iter().take_while(|line| **line != "Stack backtrace:") {
        let numbered = cause.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
        chain.push_str(": ");
        chain.push_str(numbered.map_or(*cause, |(_, text)| text));
    }
    Some(chain)
}

fn entry(line: &str) -> Option<(bool, String)> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = value
        .get("msg")
        .or_else(|| value.get("message"))
        .or_else(|| value.get("fields")?.get("message"))?
        .as_str()?;
    let level = value.get("level").and_then(|level| level.as_str()).unwrap_or_default().to_ascii_lowercase();
    Some((matches!(level.as_str(), "error" | "fatal" | "panic"), text.to_owned()))
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

fn printable(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(MAX_MESSAGE)];
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_message() {
        let check = |log: &str, stderr: &str, expect: Option<&str>| {
            assert_eq!(message(log, stderr).as_deref(), expect, "{log:?} {stderr:?}");
        };
        check("", "", None);
        check("", "a\n\n b \n", Some("b"));
        check(r#"{"level":"error","msg":"x\u001b[31m","time":"t"}"#, "noise", Some("x [31m"));
        check("{\"level\":\"error\",\"msg\":\"why\"}\n{\"level\":\"info\",\"msg\":\"bye\"}", "", Some("why"));
        check("{\"level\":\"warning\",\"msg\":\"w\"}", "", Some("w"));
        check("{\"level\":\"warning\",\"msg\":\"w\"}", "real\n", Some("real"));
        check(r#"{"timestamp":"t","level":"ERROR","fields":{"message":"m"}}"#, "", Some("m"));
        check(r#"{"level":"ERROR","message":"m","target":"youki"}"#, "", Some("m"));
        check("not json", "", Some("not json"));
        check(
            "",
            "Error: no seal\n\nCaused by:\n    busy (os error 16)\n",
            Some("no seal: busy (os error 16)"),
        );
        let chain = "noise\nError: a\n\nCaused by:\n    0: b: c\n    1: d\n\nStack backtrace:\n   0: main\n";
        check("", chain, Some("a: b: c: d"));
        check("", "Caused by:\n", Some("Caused by:"));
    }
}
