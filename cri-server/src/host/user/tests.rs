//! Tables of what people and attackers write after `USER`.

use super::*;

const PASSWD_FILE: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/bin/false
app:x:1000:50000:App,,,:/home/app:/bin/sh
1000:x:0:0:number as a name:/evil:/bin/sh
4294967296:x:0:0:overflow:/evil:/bin/sh
-1:x:0:0:negative:/evil:/bin/sh
+5:x:0:0:sign:/evil:/bin/sh
with space:x:1500:1500::/home/space:/bin/sh
\u{fc}ser:x:1600:1600::/home/\u{fc}ser:/bin/sh
big:x:4294967295:0::/:/bin/sh
biggroup:x:7:4294967296::/:/bin/sh
short:x:8
noid:x::0::/:/bin/sh
:x:9:9::/:/bin/sh

# comment:x:10:10::/:/bin/sh
+::::::
app:x:0:0:second of its name:/evil:/bin/sh
relative:x:1700:1700::home:/bin/sh
tab:x:1701:1701::/home\tx:/bin/sh
homeless:x:1702:1702
";

const GROUP_FILE: &str = "\
root:x:0:
bin:x:1:root,daemon
www-data:x:33:
staff:x:50:app,www-data
app:x:50000:
extra:x:60000:app
broken:x:-1:app
huge:x:4294967296:app
crlf:x:70:nobody,app\r
2000:x:4:
nomembers:x:71
+:::
";

fn files(path: &'static str) -> io::Result<Option<Vec<u8>>> {
    Ok(Some(if path == PASSWD { PASSWD_FILE } else { GROUP_FILE }.as_bytes().to_vec()))
}

fn summary(result: Result<ResolvedUser, UserError>) -> String {
    match result {
        Ok(user) => format!("{}:{} {:?} {}", user.uid, user.gid, user.additional_gids, user.home),
        Err(error) => match error {
            UserError::Invalid { reason, .. } => format!("invalid: {reason}"),
            UserError::UnknownUser(name) => format!("no user {name}"),
            UserError::UnknownGroup(name) => format!("no group {name}"),
            other => other.to_string(),
        },
    }
}

#[test]
fn what_user_of_an_image_means() {
    let long = "a".repeat(257);
    let zeros = format!("{}5", "0".repeat(30));
    let check = |user: &str, expect: &str| {
        let request = UserRequest { image_user: user, ..Default::default() };
        assert_eq!(summary(resolve_with(&request, files)), expect, "USER {user:?}");
    };
    // Names and numbers.
    check("", "0:0 [0, 1] /root");
    check("root", "0:0 [0, 1] /root");
    check("0", "0:0 [0, 1] /root");
    check("daemon", "1:1 [1] /usr/sbin");
    check("www-data", "33:33 [33, 50] /var/www");
    check("33", "33:33 [33, 50] /var/www");
    check("app", "1000:50000 [50, 70, 50000, 60000] /home/app");
    check("5", "5:0 [0] /");
    check("12345", "12345:0 [0] /");
    check("007", "7:0 [0] /");
    check("00", "0:0 [0, 1] /root");
    check(&zeros, "5:0 [0] /");
    // Numbers that are names in passwd: the number wins.
    check("1000", "1000:50000 [50, 70, 50000, 60000] /home/app");
    check("4294967296", "invalid: a number above 2147483647");
    check("2000:2000", "2000:2000 [2000] /");
    // Ends of the range.
    check("2147483647", "2147483647:0 [0] /");
    check("2147483648", "invalid: a number above 2147483647");
    check("4294967295", "invalid: a number above 2147483647");
    check("18446744073709551616", "invalid: a number above 2147483647");
    check("99999999999999999999999999999999999", "invalid: a number above 2147483647");
    check("app:2147483648", "invalid: a number above 2147483647");
    check("0:4294967296", "invalid: a number above 2147483647");
    // Signs and other spellings of numbers are no numbers.
    check("-1", "invalid: a sign");
    check("+5", "invalid: a sign");
    check("0:-1", "invalid: a sign");
    check("0x10", "no user 0x10");
    check("1e3", "no user 1e3");
    check("1_000", "no user 1_000");
    check("5.0", "no user 5.0");
    check(" 5", "no user  5");
    check("\u{ff11}\u{ff10}", "no user \u{ff11}\u{ff10}");
    check("\u{0661}", "no user \u{0661}");
    // With a group.
    check("app:staff", "1000:50 [50, 70, 60000] /home/app");
    check("app:2000", "1000:2000 [50, 70, 2000, 60000] /home/app");
    check("1000:staff", "1000:50 [50, 70, 60000] /home/app");
    check("1000:1000", "1000:1000 [50, 70, 1000, 60000] /home/app");
    check("12345:staff", "12345:50 [50] /");
    check("12345:6", "12345:6 [6] /");
    check("root:0", "0:0 [0, 1] /root");
    check("app:nogroup", "no group nogroup");
    check("nobody", "no user nobody");
    check("nobody:staff", "no user nobody");
    // Empty and surplus parts.
    check(":", "invalid: an empty part");
    check(":0", "invalid: an empty part");
    check(":staff", "invalid: an empty part");
    check("app:", "invalid: an empty part");
    check("0:", "invalid: an empty part");
    check("::", "invalid: an empty part");
    check("app:staff:x", "invalid: a character that no name has");
    check("0:0:0", "invalid: a character that no name has");
    check("app:staff:", "invalid: a character that no name has");
    // Hostile bytes.
    check("root\n", "invalid: a control character");
    check("0\n", "invalid: a control character");
    check("root\0", "invalid: a control character");
    check("\0", "invalid: a control character");
    check("app:staff\n", "invalid: a control character");
    check("root\r", "invalid: a control character");
    check("\u{1b}[2J", "invalid: a control character");
    check("root\u{85}", "invalid: a control character");
    check("root\nx:x:0:0::/:/bin/sh", "invalid: a control character");
    check("../root", "invalid: a character that no name has");
    check("app,root", "invalid: a character that no name has");
    check(&long, "invalid: longer than 256 bytes");
    // Names are compared exactly.
    check("root ", "no user root ");
    check(" root", "no user  root");
    check("Root", "no user Root");
    check(" ", "no user  ");
    check("with space", "1500:1500 [1500] /home/space");
    check("\u{fc}ser", "1600:1600 [1600] /home/\u{fc}ser");
    check("u\u{308}ser", "no user u\u{308}ser");
    // Lines that are none.
    check("big", "no user big");
    check("biggroup", "no user biggroup");
    check("short", "no user short");
    check("noid", "no user noid");
    check("# comment", "10:10 [10] /");
    check("0:broken", "no group broken");
    check("0:huge", "no group huge");
    check("0:nomembers", "0:71 [1, 71] /root");
    // Homes that are none.
    check("relative", "1700:1700 [1700] /");
    check("tab", "1701:1701 [1701] /");
    check("homeless", "1702:1702 [1702] /");
}

#[test]
fn what_the_request_says_comes_first() {
    let check = |change: fn(&mut UserRequest<'_>), expect: &str| {
        let mut request = UserRequest { image_user: "app:staff", ..Default::default() };
        change(&mut request);
        assert_eq!(summary(resolve_with(&request, files)), expect);
    };
    check(|_| {}, "1000:50 [50, 70, 60000] /home/app");
    check(|r| r.run_as_user = Some(33), "33:33 [33, 50] /var/www");
    check(|r| r.run_as_user = Some(1000), "1000:50000 [50, 70, 50000, 60000] /home/app");
    check(|r| r.run_as_user = Some(0), "0:0 [0, 1] /root");
    check(|r| r.run_as_username = "www-data", "33:33 [33, 50] /var/www");
    check(|r| r.run_as_username = "1000", "1000:50000 [50, 70, 50000, 60000] /home/app");
    check(|r| r.run_as_username = "app:staff", "invalid: a character that no name has");
    check(|r| r.run_as_username = "nobody", "no user nobody");
    check(|r| (r.run_as_user, r.run_as_group) = (Some(5), Some(6)), "5:6 [6] /");
    check(|r| (r.run_as_username, r.run_as_group) = ("app", Some(6)), "1000:6 [6, 50, 70, 60000] /home/app");
    check(|r| r.run_as_group = Some(6), "run_as_group is set without run_as_user or run_as_username");
    check(
        |r| (r.run_as_user, r.run_as_username) = (Some(0), "app"),
        "both run_as_user and run_as_username are set",
    );
    check(|r| r.run_as_user = Some(-1), "invalid: not between 0 and 2147483647");
    check(|r| r.run_as_user = Some(1 << 31), "invalid: not between 0 and 2147483647");
    check(|r| r.run_as_user = Some(1 << 32), "invalid: not between 0 and 2147483647");
    check(
        |r| (r.run_as_user, r.run_as_group) = (Some(0), Some(i64::MIN)),
        "invalid: not between 0 and 2147483647",
    );
    check(|r| r.supplemental_groups = &[-1], "invalid: not between 0 and 2147483647");
    check(|r| r.supplemental_groups = &[i64::MAX], "invalid: not between 0 and 2147483647");
}

#[test]
fn supplementary_groups_by_policy() {
    let check = |user: &str, policy, groups: &[i64], expect: &[u32]| {
        let request =
            UserRequest { image_user: user, policy, supplemental_groups: groups, ..Default::default() };
        assert_eq!(resolve_with(&request, files).unwrap().additional_gids, expect, "{user} {policy:?}");
    };
    use GroupsPolicy::{Merge, Strict};
    check("app", Merge, &[], &[50, 70, 50000, 60000]);
    check("app", Strict, &[], &[50000]);
    check("app", Merge, &[5, 50, 5], &[5, 50, 70, 50000, 60000]);
    check("app", Strict, &[5, 50000, 5], &[5, 50000]);
    check("app:staff", Strict, &[5], &[5, 50]);
    check("12345", Merge, &[5], &[0, 5]);
    check("12345:6", Strict, &[], &[6]);
}

#[test]
fn images_without_files_and_files_that_are_not_fit_to_be_read() {
    let check = |user: &str, kind: Option<io::ErrorKind>, expect: &str| {
        let request = UserRequest { image_user: user, ..Default::default() };
        let read = |_: &'static str| kind.map_or(Ok(None), |kind| Err(kind.into()));
        assert_eq!(summary(resolve_with(&request, read)), expect, "{user} {kind:?}");
    };
    check("", None, "0:0 [0] /");
    check("5:6", None, "5:6 [6] /");
    check("app", None, "no user app");
    check("5:staff", None, "no group staff");
    check("", Some(io::ErrorKind::NotADirectory), "0:0 [0] /");
    check("", Some(io::ErrorKind::InvalidData), "read /etc/passwd of the image");
}

#[test]
fn bytes_that_are_no_text_hide_only_their_line() {
    let request = UserRequest { image_user: "app", ..Default::default() };
    let file = b"app:x:0:0:\xff:/:/x\nroot\0:x:0:0::/:\napp:x:5:6::/home/app:/x".to_vec();
    let read = |path: &'static str| Ok((path == PASSWD).then(|| file.clone()));
    assert_eq!(summary(resolve_with(&request, read)), "5:6 [6] /home/app");
}

#[test]
fn a_user_in_too_many_groups_is_refused() {
    let request = UserRequest { image_user: "app", ..Default::default() };
    let group: String = (1..=MAX_GROUPS + 1).map(|gid| format!("g:x:{gid}:app\n")).collect();
    let read = |path: &'static str| match path {
        PASSWD => Ok(Some(b"app:x:5:6:::".to_vec())),
        _ => Ok(Some(group.clone().into_bytes())),
    };
    assert!(matches!(resolve_with(&request, read), Err(UserError::TooManyGroups)));
}

#[test]
fn files_are_read_inside_the_root_and_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("root/etc");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(dir.path().join("passwd"), "app:x:0:0::/:/x\n").unwrap();
    let resolve = || {
        let root = fs::open_root(&dir.path().join("root")).unwrap();
        summary(super::resolve(&root, &UserRequest { image_user: "app", ..Default::default() }))
    };
    assert_eq!(resolve(), "no user app");
    std::os::unix::fs::symlink("../../passwd", etc.join("passwd")).unwrap();
    assert_eq!(resolve(), "no user app");
    std::fs::remove_file(etc.join("passwd")).unwrap();
    std::fs::write(etc.join("passwd"), "app:x:5:6::/home/app:/x\n").unwrap();
    assert_eq!(resolve(), "5:6 [6] /home/app");
    let huge = std::fs::File::options().write(true).open(etc.join("passwd")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert_eq!(resolve(), "read /etc/passwd of the image");
    std::fs::remove_file(etc.join("passwd")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", etc.join("passwd")).unwrap();
    assert_eq!(resolve(), "no user app");
    std::fs::remove_file(etc.join("passwd")).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
    rustix::fs::mknodat(rustix::fs::CWD, etc.join("passwd"), kind, mode, 0).unwrap();
    assert_eq!(resolve(), "read /etc/passwd of the image");
}
