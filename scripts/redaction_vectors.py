#!/usr/bin/env python3
"""Writes tests/vectors/redaction.jsonl: made-up numbers, valid and invalid, with what redaction must make of them.

    python3 scripts/redaction_vectors.py

Check characters are computed here, independently of the product: MOD 11-2 after GB 11643, Luhn after ISO/IEC 7812.
"""

import json

V = []


def v(text, expected, why):
    V.append((text, expected, why))


def same(text, why):
    v(text, text, why)


# phones
P = "<电话>"
for n in [
    "13800138000",
    "13912345678",
    "14712345678",
    "15000000000",
    "16612345678",
    "17712345678",
    "18888888888",
    "19912345678",
]:
    v(f"请打{n}联系", f"请打{P}联系", "mobile number between Chinese characters")
for n in [
    "138 0013 8000",
    "138-0013-8000",
    "138 00138000",
    "138-00138000",
    "+8613800138000",
    "+86 13800138000",
    "+86-138-0013-8000",
    "8613800138000",
    "86 13800138000",
    "008613800138000",
    "0086-13800138000",
    "0086 138 0013 8000",
]:
    v(f"手机:{n}", f"手机:{P}", "mobile number with separators or country code")
v("１３８００１３８０００", "<电话>", "full-width digits")
v("１３８－００１３－８０００", "<电话>", "full-width digits and hyphens")
v("电话13800138000,13900139000", "电话<电话>,<电话>", "two numbers in one text")
v("13800138000/13900139000", "<电话>/<电话>", "two numbers with a slash")
v("tel:13800138000", "tel:<电话>", "after a colon")
v("（13800138000）", "(<电话>)", "in brackets")
v("李某13800138000王某13900139000", "李某<电话>王某<电话>", "numbers between names")
for n in [
    "0731-88887777",
    "073188887777",
    "0731 88887777",
    "(0731)88887777",
    "0731-8888777",
    "010-66668888",
    "01066668888",
    "(010)66668888",
    "021-55556666",
    "020-33334444",
    "0755-22223333",
    "010-66668888-801",
    "0991-2345678",
]:
    v(f"座机{n}", f"座机{P}", "landline with area code")
for n in ["400-123-4567", "4001234567", "800-123-4567", "400-1234567"]:
    v(f"客服{n}", f"客服{P}", "400 or 800 number")
for t in [
    "打110报警",
    "打119和120",
    "市民热线12345",
    "投诉到12315",
    "拨打12388举报",
    "话费查询10086",
    "10000号客服",
    "火车票12306",
    "气象121",
    "交通事故122",
]:
    same(t, "public short number")
for t in [
    "12800138000",
    "10800138000",
    "23800138000",
    "1380013800",
    "138001380001",
    "编号a13800138000",
    "138001380001380",
    "013800138000",
]:
    same(t, "not the shape of a mobile number")
for t in [
    "2026年11月24日",
    "2026-11-24",
    "11月24日14:30",
    "欠款1380013元",
    "金额138,001.38元",
    "共13800人",
    "第138号",
    "138平方米",
    "99.5%",
    "3.1415926535",
    "1000000000元",
    "总投资13亿8000万",
    "0731区域",
    "2024-2025学年",
    "8:00-12:00",
    "比分3:2",
    "第10086次",
    "房号1-2-301",
    "5栋2单元1203",
    "k128+500处",
    "g107国道",
    "省道s211",
    "车次k1138",
    "航班cz3101",
    "型号iphone15",
    "湘政发〔2024〕12号",
    "文号2024-138",
    "isbn 978-7-111-00000-1",
    "经度112.938814",
    "坐标28.2282,112.9388",
    "邮编410000",
    "版本1.38.0",
    "订单20261124001",
    "合同编号ht2026112400138",
]:
    same(t, "a number that is no personal data")
# identity numbers
W = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]


def idn(first17):
    return first17 + "10X98765432"[sum(int(a) * b for a, b in zip(first17, W)) % 11]


I = "<身份证>"
valid = [
    idn(x)
    for x in [
        "11010519491231002",
        "43010019800101123",
        "44030019991231888",
        "51010020010229001",
        "31010119700615432",
        "65010019881111077",
        "12010120000101000",
        "50010119650303456",
        "35020319930909919",
        "62010019770707123",
    ]
]
for n in valid:
    v(f"身份证号{n}", f"身份证号{I}", "right check character")
for n in valid[:4]:
    v(f"身份证:{n[:6]} {n[6:14]} {n[14:]}", f"身份证:{I}", "right check character, grouped by spaces")
x = idn("11010519491231002")
assert x[-1] == "X"
v(f"证件{x.lower()}", f"证件{I}", "lower-case x")
v("证件１１０１０５１９４９１２３１００２Ｘ", "证件" + I, "full-width identity number")
v(f"{valid[1]}和{valid[2]}", f"{I}和{I}", "two identity numbers")
v(f"本人张某,{valid[3]},住3栋", f"本人张某,{I},住3栋", "between commas")
for n in valid[:8]:
    wrong = n[:-1] + ("1" if n[-1] != "1" else "2")
    same(f"编号{wrong}", "wrong check character")


def bad(first17, why):
    same(f"编号{idn(first17).lower()}", why)


bad("11010519491331002", "month 13")
bad("11010519491232002", "day 32")
bad("11010517491231002", "born 1749")
bad("11010519490031002", "month 0")
bad("11010519491200002", "day 0")
same("编号" + valid[0].lower() + "9", "19 characters")
same("编号a" + valid[1], "touches a letter")
same("编号0" + valid[1], "touches a digit")
for n in ["110105491231002", "430100800101123", "440300991231888", "310101700615432"]:
    v(f"老身份证{n}", f"老身份证{I}", "15 digits of the first generation with a real date")
for n in ["110105491331002", "430100800132123", "440300990031888", "010105491231002"]:
    same(f"流水号{n}", "15 digits without a date or with a leading zero")
# e-mail
for m in [
    "a@example.com",
    "a.b@example.com",
    "a.b+c@example.com",
    "a_b-c@mail.example.com",
    "abc123@example.cn",
    "x@example.com.cn",
    "123456789@example.com",
    "a%b@example.org",
    "first.last@sub.mail.example.net",
    "a@ex-ample.com",
]:
    v(f"邮箱{m}谢谢", f"邮箱<邮箱>谢谢", "e-mail address")
v("发到ＡＢＣ＠ＥＸＡＭＰＬＥ．ＣＯＭ", "发到<邮箱>", "full-width e-mail address")
v("A.B@Example.COM", "<邮箱>", "upper case")
v("a@example.com;b@example.com", "<邮箱>;<邮箱>", "two addresses")
for t in ["a.b.c", "文件a.txt", "example.com是例子", "5 @ 3", "邮箱是什么"]:
    same(t, "no address and no handle")


# bank cards
def luhn(body):
    s = 0
    for i, c in enumerate(reversed(body)):
        d = int(c)
        if i % 2 == 0:
            d *= 2
            if d > 9:
                d -= 9
        s += d
    return body + str((10 - s % 10) % 10)


C = "<银行卡>"
bodies = [
    "411111111111111",
    "622202000000000000",
    "621700123456789012",
    "555555555555444",
    "601382100000000000",
    "622848000000000000",
    "436742000000000000",
    "356600202036050",
    "622588000000000",
    "520082828282821",
]
for b in bodies:
    n = luhn(b)
    v(f"卡号{n}", f"卡号{C}", "passes the Luhn check")
for b in bodies[:5]:
    n = luhn(b)
    g = " ".join(n[i : i + 4] for i in range(0, len(n), 4))
    v(f"卡号{g}。", f"卡号{C}。", "groups of four")
n = luhn(bodies[0])
v("卡号" + "-".join(n[i : i + 4] for i in range(0, 16, 4)), f"卡号{C}", "groups with hyphens")
for b in bodies:
    n = luhn(b)
    wrong = n[:-1] + str((int(n[-1]) + 1) % 10)
    same(f"流水号{wrong}", "fails the Luhn check")
same("流水号" + luhn("911111111111111"), "no card begins with 9")
same("流水号" + luhn("41111111111"), "12 digits are no card")
# plates
L = "<车牌>"
for p in [
    "湘A12345",
    "湘A·12345",
    "京B88888",
    "粤B·A1234",
    "沪C1A2B3",
    "新A0001X",
    "藏A98765",
    "琼E6666K",
    "川A·F1234",
    "辽B1234学",
    "京A1234警",
    "鲁Q9999挂",
    "粤Z1234港",
    "粤Z5678澳",
    "湘AD12345",
    "京AF00001",
    "沪BDF1234",
    "渝D·12345F",
]:
    v(f"车牌{p}违停", f"车牌{L}违停", "plate of the mainland")
v("湘Ａ１２３４５", "<车牌>", "full-width plate")
v("湘a12345", "<车牌>", "lower case")
v("湘A 12345", "<车牌>", "with a space")
for p in ["沪A0023领", "粤A0101领"]:
    v(f"车牌{p}停在门口", f"车牌{L}停在门口", "consular plate")
for p in ["使014578", "使014·578", "使224 001"]:
    v(f"车牌{p}停在门口", f"车牌{L}停在门口", "embassy plate")
for t in [
    "湘abcdefg",
    "湘江a岸",
    "京a座1号",
    "湘a123",
    "使用014578元",
    "大使馆",
    "苏c级",
    "川a4纸",
    "a12345",
    "湘12345",
    "京津冀",
    "使人014",
]:
    same(t, "not a plate")
# handles
H = "@用户"
for h in ["@小区管家", "@abc", "@abc_123", "@李-某", "@青石发布"]:
    v(f"请看{h} 谢谢", f"请看{H} 谢谢", "handle, closed by a space")
v("＠物业 你好", "@用户 你好", "full-width at sign")
v("@甲 @乙", "@用户 @用户", "two handles")
v("@用户:你好", "@用户:你好", "a placeholder already there")
v("艾特@物业,快来", "艾特@用户,快来", "closed by a comma")
for t in ["单价@", "@ 空格"]:
    same(t, "an at sign without a name")
# web addresses
U = "<网址>"
for u in [
    "https://example.com",
    "http://example.com/a/b?c=1",
    "www.example.com",
    "https://example.com/u/123456#x",
    "http://example.com:8080/x",
]:
    v(f"见{u} 谢谢", f"见{U} 谢谢", "web address")
v("见https://example.com/u/1，谢谢", "见<网址>,谢谢", "closed by a Chinese comma")
# together and already masked
v("张某13800138000,湘A12345,a@example.com", "张某<电话>,<车牌>,<邮箱>", "three kinds in one text")
v(f"身份证{valid[1]}电话13800138000", f"身份证{I}电话{P}", "identity number then phone")
for p in [P, I, "<邮箱>", C, L, U]:
    same(f"联系{p}谢谢", "a placeholder already there")
v("\u200b13800138000\u200b", "<电话>", "zero-width characters around")
v("138\u200b0013\u200b8000", "<电话>", "zero-width characters inside")
v("转账到" + luhn("622202000000000000") + "户名李某", "转账到<银行卡>户名李某", "card before Chinese")
seen = set()
out = []
for t, e, w in V:
    if t in seen:
        continue
    seen.add(t)
    out.append({"text": t, "expected": e, "why": w})
with open("tests/vectors/redaction.jsonl", "w") as f:
    for r in out:
        f.write(json.dumps(r, ensure_ascii=False) + "\n")
print(len(out), sum(r["text"] == r["expected"] for r in out))
