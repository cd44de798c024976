//! Author-blindness: the field names no input format accepts.
//!
//! Triage reads what was said, never who said it. Every door (HTTP, CSV, JSONL) asks
//! [`is_author_field`] about each field name it meets and refuses the item by name.
//!
//! The people who handle a case (承办人, `annotator`) are not its author and are let pass.

/// English words for a person or a trait of one: a name that has such a word is refused.
const PERSON_WORDS: &[&str] = &[
    "author",
    "avatar",
    "blogger",
    "contact",
    "email",
    "fans",
    "followers",
    "gender",
    "imei",
    "ip",
    "mail",
    "mobile",
    "nick",
    "nickname",
    "phone",
    "poster",
    "qq",
    "reporter",
    "sender",
    "sex",
    "tel",
    "telephone",
    "uid",
    "user",
    "username",
    "wechat",
];
/// Names that only as a whole tell of a person, in the folded form of [`fold`].
const PERSON_NAMES: &[&str] = &[
    "authorid",
    "authorname",
    "avatarurl",
    "deviceid",
    "fullname",
    "idcard",
    "idnumber",
    "ipaddress",
    "iplocation",
    "openid",
    "phonenumber",
    "profileurl",
    "realname",
    "screenname",
    "senderid",
    "unionid",
    "userid",
    "wechatid",
    "weiboid",
    "名字",
];
/// Chinese words for a person or a trait of one, wherever they stand in a name.
const PERSON_WORDS_ZH: &[&str] = &[
    "作者",
    "用户",
    "博主",
    "楼主",
    "网友",
    "网民",
    "昵称",
    "网名",
    "姓名",
    "真名",
    "头像",
    "手机",
    "电话",
    "联系方式",
    "邮箱",
    "微信",
    "身份证",
    "性别",
    "粉丝",
    "账号",
    "帐号",
];
/// What an author does: with 人 or 者 after it the author (投诉人, 发布者).
const ACTS_ZH: &[&str] = &[
    "发布", "发帖", "发文", "发言", "留言", "评论", "来电", "来信", "来访", "联系", "反映", "诉求",
    "投诉", "举报", "信访", "求助", "咨询", "爆料", "提交", "申请", "上报", "报告", "报警",
];
/// What was said: a name that ends so is of the text, whoever stands before it (用户评论).
const SAID: &[&str] = &[
    "text", "content", "comment", "feedback", "title", "正文", "内容", "标题", "评论", "留言",
    "评价", "反馈", "诉求", "意见", "建议",
];
/// Counts of people tell of nobody (投诉人数).
const COUNTS_ZH: &[&str] = &["人数", "人次"];

/// True when `name` names the author or a trait of the author, whatever its case or separators
/// (`user_id`, `userId` and `User-ID` are one name).
pub fn is_author_field(name: &str) -> bool {
    let folded = fold(name);
    if SAID.iter().any(|it| folded.ends_with(it)) {
        return false;
    }
    PERSON_NAMES.contains(&folded.as_str())
        || words(name).iter().any(|it| PERSON_WORDS.contains(&it.as_str()))
        || (!folded.is_ascii() && names_person_zh(&folded))
}

fn names_person_zh(folded: &str) -> bool {
    let name = COUNTS_ZH.iter().fold(folded.to_owned(), |name, it| name.replace(it, ""));
    let acts = |act: &str| {
        name.match_indices(act).any(|(at, act)| name[at + act.len()..].starts_with(['人', '者']))
    };
    PERSON_WORDS_ZH.iter().any(|it| name.contains(it)) || ACTS_ZH.iter().any(|it| acts(it))
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|it| !matches!(it, '_' | '-' | ' ' | '.' | '\u{feff}'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// The English words of `name` in small letters: `user_id` and `userId` have two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for it in name.chars() {
        if !it.is_ascii_alphabetic() || (was_small && it.is_ascii_uppercase()) {
            words.push(String::new());
        }
        if it.is_ascii_alphabetic() {
            words.last_mut().expect("there is one").push(it.to_ascii_lowercase());
        }
        was_small = it.is_ascii_lowercase();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn author_fields_are_known_in_any_spelling() {
        let names = "author user_id userId User-ID userid nickname IP IPAddress ip属地 昵称 作者 手机号 \
                     用户 用户名称 用户ID 发布人 发布者ID 博主 联系人 联系人电话 来电人 诉求人 反映人 投诉人 \
                     投诉人地址 举报人 微博昵称 名字 姓名 市民姓名 user_nickname contact contactPhone \
                     author_name mobile QQ号 联系方式 粉丝数 screen_name";
        for name in names.split_whitespace() {
            assert!(is_author_field(name), "{name}");
        }
    }

    #[test]
    fn what_was_said_where_and_how_often_is_no_author() {
        let names = "text id source label date topic description title hotel ipsum 正文 标题 内容 来源 部门 \
                     编号 人数 投诉人数 举报人次 承办人 标注人 annotator annotators 发布时间 发布平台 投诉内容 \
                     反映问题 诉求类型 联系地址 小区名字 用户评论 网民留言 user_comment 评论数 人员伤亡";
        for name in names.split_whitespace() {
            assert!(!is_author_field(name), "{name}");
        }
    }
}
