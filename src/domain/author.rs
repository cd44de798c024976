//! Author-blindness: the field names no input format accepts.
//!
//! Triage reads what was said, never who said it. Every door (HTTP, CSV, JSONL) asks
//! [`is_author_field`] about each field name it meets and refuses the item by name.

/// Field names that identify an author, in the folded form of [`fold`].
const AUTHOR_FIELDS: &[&str] = &[
    "author",
    "authorid",
    "authorname",
    "user",
    "userid",
    "username",
    "uid",
    "nick",
    "nickname",
    "screenname",
    "realname",
    "fullname",
    "avatar",
    "avatarurl",
    "profileurl",
    "ip",
    "ipaddress",
    "iplocation",
    "phone",
    "phonenumber",
    "mobile",
    "telephone",
    "tel",
    "email",
    "mail",
    "openid",
    "unionid",
    "wechat",
    "wechatid",
    "qq",
    "weiboid",
    "idcard",
    "idnumber",
    "gender",
    "sex",
    "followers",
    "fans",
    "deviceid",
    "imei",
    "sender",
    "senderid",
    "poster",
    "reporter",
    "作者",
    "作者id",
    "作者名",
    "用户",
    "用户id",
    "用户名",
    "用户昵称",
    "昵称",
    "网名",
    "姓名",
    "真实姓名",
    "头像",
    "ip属地",
    "ip地址",
    "手机",
    "手机号",
    "手机号码",
    "电话",
    "电话号码",
    "联系电话",
    "联系方式",
    "邮箱",
    "微信",
    "微信号",
    "身份证",
    "身份证号",
    "性别",
    "粉丝数",
    "发布者",
    "发帖人",
    "举报人",
    "留言人",
    "投诉人",
    "账号",
];

/// True when `name` names the author or a trait of the author, whatever its case or separators
/// (`user_id`, `userId` and `User-ID` are one name).
pub fn is_author_field(name: &str) -> bool {
    AUTHOR_FIELDS.contains(&fold(name).as_str())
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|it| !matches!(it, '_' | '-' | ' ' | '.' | '\u{feff}'))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn author_fields_are_known_in_any_spelling() {
        for name in
            ["author", "user_id", "userId", "User-ID", "nickname", "IP", "昵称", "作者", "手机号"]
        {
            assert!(is_author_field(name), "{name}");
        }
        for name in ["text", "id", "source", "label", "date", "topic", "正文", "内容"] {
            assert!(!is_author_field(name), "{name}");
        }
    }
}
