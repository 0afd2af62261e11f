"""The language of texts, and the default instruction and field names in it.

A language is recognised by its script, or by its frequent short words. English is used wherever none is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ENGLISH", "LANGUAGES", "Language", "language_of"]


class Language(NamedTuple):
    """How a task is put in a language.

    Attributes:
        name: English name of the language.
        choose: instruction for labels, with `{choice}`.
        answer: instruction for free answers.
        either: word between the last two labels, with its spaces.
        comma: what divides the labels before.
        wording: field names of input and label.
        words: frequent short words; empty where the script tells the language.
    """

    name: str
    choose: str
    answer: str
    either: str
    comma: str
    wording: tuple[str, str]
    words: str = ""


ENGLISH = Language(
    "English",
    "Read the following input, then choose whether it is {choice}.",
    "Read the following input, then give the answer.",
    " or ",
    ", ",
    ("Input", "Label"),
    "the and is to of in it was for with this that are you not my have be on a i what how",
)

LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "de": Language(
        "German", "Lies den folgenden Text und entscheide, was zutrifft: {choice}.",
        "Lies den folgenden Text und gib die Antwort.", " oder ", ", ", ("Text", "Klasse"),
        "der die das und ist war nicht ein eine ich mit für auf hat sehr den dem wir es zu im von wieder mich",
    ),
    "fr": Language(
        "French", "Lis le texte suivant, puis choisis ce qui convient : {choice}.",
        "Lis le texte suivant, puis donne la réponse.", " ou ", ", ", ("Texte", "Classe"),
        "le la les et est une un des pas je très pour dans avec que qui ce cette du au nous vous c'est était",
    ),
    "es": Language(
        "Spanish", "Lee el texto siguiente y elige lo que corresponde: {choice}.",
        "Lee el texto siguiente y da la respuesta.", " o ", ", ", ("Texto", "Clase"),
        "el la los las y es una un de que no muy para con por en mi me lo fue está pero se del",
    ),
    "it": Language(
        "Italian", "Leggi il testo seguente e scegli ciò che corrisponde: {choice}.",
        "Leggi il testo seguente e dai la risposta.", " o ", ", ", ("Testo", "Classe"),
        "il lo la gli le e è un una di che non molto per con sono del della questo mi ma era si",
    ),
    "pt": Language(
        "Portuguese", "Leia o texto a seguir e escolha o que corresponde: {choice}.",
        "Leia o texto a seguir e dê a resposta.", " ou ", ", ", ("Texto", "Classe"),
        "o os as e é um uma de que não muito para com em do da meu foi mas está eu você isso",
    ),
    "nl": Language(
        "Dutch", "Lees de volgende tekst en kies wat klopt: {choice}.",
        "Lees de volgende tekst en geef het antwoord.", " of ", ", ", ("Tekst", "Klasse"),
        "de het een en is was niet ik van met voor op zijn heel dat die wij er naar maar ook",
    ),
    "pl": Language(
        "Polish", "Przeczytaj poniższy tekst i wybierz, co pasuje: {choice}.",
        "Przeczytaj poniższy tekst i podaj odpowiedź.", " czy ", ", ", ("Tekst", "Klasa"),
        "i w na jest nie się z do to bardzo że był jak ale dla przez mi po już",
    ),
    "tr": Language(
        "Turkish", "Aşağıdaki metni oku ve uygun olanı seç: {choice}.",
        "Aşağıdaki metni oku ve yanıtı ver.", " veya ", ", ", ("Metin", "Etiket"),
        "ve bir bu çok için ile da de ama değil ben daha gibi ne iyi mi var",
    ),
    "zh": Language(
        "Chinese",
        "阅读下面的文本，判断它属于：{choice}。",
        "阅读下面的文本，给出答案。",
        "或",
        "、",
        ("文本", "类别"),
    ),
    "ja": Language(
        "Japanese",
        "次の文章を読み、どれに当てはまるか選んでください：{choice}。",
        "次の文章を読み、答えてください。",
        "または",
        "、",
        ("文章", "分類"),
    ),
    "ko": Language(
        "Korean",
        "다음 글을 읽고 알맞은 것을 고르세요: {choice}.",
        "다음 글을 읽고 답을 쓰세요.",
        " 또는 ",
        ", ",
        ("글", "분류"),
    ),
    "ar": Language(
        "Arabic",
        "اقرأ النص التالي ثم اختر ما يناسبه: {choice}.",
        "اقرأ النص التالي ثم أعط الجواب.",
        " أو ",
        "، ",
        ("النص", "التصنيف"),
    ),
    "he": Language(
        "Hebrew",
        "קרא את הטקסט הבא ובחר את המתאים: {choice}.",
        "קרא את הטקסט הבא ותן את התשובה.",
        " או ",
        ", ",
        ("טקסט", "סיווג"),
    ),
    "ru": Language(
        "Russian",
        "Прочитай текст и выбери, что подходит: {choice}.",
        "Прочитай текст и дай ответ.",
        " или ",
        ", ",
        ("Текст", "Класс"),
    ),
    "uk": Language(
        "Ukrainian",
        "Прочитай текст і вибери, що підходить: {choice}.",
        "Прочитай текст і дай відповідь.",
        " або ",
        ", ",
        ("Текст", "Клас"),
    ),
    "el": Language(
        "Greek",
        "Διάβασε το κείμενο και διάλεξε τι ταιριάζει: {choice}.",
        "Διάβασε το κείμενο και δώσε την απάντηση.",
        " ή ",
        ", ",
        ("Κείμενο", "Κατηγορία"),
    ),
    "hi": Language(
        "Hindi",
        "निम्नलिखित पाठ पढ़ें और सही विकल्प चुनें: {choice}।",
        "निम्नलिखित पाठ पढ़ें और उत्तर दें।",
        " या ",
        ", ",
        ("पाठ", "श्रेणी"),
    ),
}  # fmt: skip
"""Languages by their codes."""

_SCRIPTS = {
    "ja": "\u3041-\u30fe", "ko": "\uac00-\ud7a3", "zh": "\u4e00-\u9fff", "ar": "\u0620-\u064a", "he": "\u05d0-\u05ea",
    "ru": "\u0400-\u04ff", "el": "\u0370-\u03ff", "hi": "\u0900-\u097f",
}  # fmt: skip


def language_of(texts: Sequence[str]) -> Language:
    """The language of texts; English where none is recognised.

    >>> language_of(["Das Essen war nicht gut.", "Ich bin sehr zufrieden mit dem Hotel."]).name
    'German'
    """
    sample = " ".join(text[:200] for text in texts[:300]).lower()
    letters = sum(character.isalpha() for character in sample)
    if not letters:
        return ENGLISH
    for code, characters in _SCRIPTS.items():
        n = len(re.findall(f"[{characters}]", sample))
        if n > (0.1 if code == "ja" else 0.5) * letters:  # Japanese mixes kana with Han
            ukrainian = code == "ru" and len(re.findall("[іїєґ]", sample)) > 0.01 * n
            return LANGUAGES["uk" if ukrainian else code]
    counts = Counter(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", sample))
    total = sum(counts.values())
    shares = {
        code: sum(counts[word] for word in language.words.split()) / total
        for code, language in LANGUAGES.items()
        if language.words
    }
    best = max(shares, key=lambda code: shares[code])
    clear = shares[best] >= 0.12 and shares[best] > 1.3 * shares["en"]
    return LANGUAGES[best] if clear else ENGLISH
