"""Sentences of the bundled tasks that `make_outputs` writes."""

__all__ = ["CITIES", "DAYS", "GREETINGS", "ITEMS", "NUMBERS", "ORDERS", "REVIEWS", "TOPICS"]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


TOPICS = {
    "account": _lines("""
        I cannot log in any more.
        My password no longer works.
        Please change the email address of my profile.
        The page says that my user name is unknown.
        How do I close my profile?
        The code to confirm my sign-in never comes.
        Somebody else signed in under my name.
        I was locked out after three attempts.
        Please delete my profile and all my data.
        I want to use another user name.
        The reset link for my password is broken.
        My profile shows the wrong date of birth.
        I forgot which email address I registered with.
        Two profiles under my name should be merged.
    """),
    "damage": _lines("""
        The glass had a crack.
        One leg of the chair is broken.
        The box was torn and the plates are in pieces.
        The screen is scratched all over.
        A button came off on the first day.
        The lamp arrived with a dent.
        The zip of the bag is ripped.
        The handle of the pot fell off.
        The mirror was shattered.
        The pages of the book are torn.
        The tyre has a hole.
        The wood is split along the side.
        The lid is bent and does not close.
        The vase was chipped at the rim.
    """),
    "delivery": _lines("""
        The parcel has not come yet.
        The driver left it at the wrong house.
        Where is my package?
        I waited all day and nobody rang.
        The tracking page has not changed for a week.
        Please bring it to my office instead.
        When will it arrive?
        The courier went to my old address.
        It was promised for Monday and is still on its way.
        Can the shipment be sent faster?
        The truck came while I was away.
        The parcel has been in the depot for ten days.
        I would like to collect it at the post office.
        The postman says that it went back to you.
    """),
    "payment": _lines("""
        I was charged twice.
        The invoice shows a wrong amount.
        My card was declined.
        I still wait for my refund.
        Can I pay in three parts?
        The discount was not taken off the price.
        You took the money before I had confirmed.
        Please send me a bill with the tax number.
        The sum on my bank statement is too high.
        Why do I pay a fee of five euros?
        The voucher was not accepted.
        I want my money back.
        Which credit cards do you take?
        The price at the end was higher than the one shown.
    """),
}

GREETINGS = _lines("""
    Hello.
    Good morning.
    Thanks in advance.
    I have been a customer for years.
    Kind regards, Ruth.
    I hope that you are well.
    Best wishes from Max.
    Please answer soon.
    Have a nice day.
    This is my second message.
    Thank you for your help.
    Ida here again.
""")

REVIEWS = {
    1: _lines("""
        A complete waste of money.
        I threw it away after one hour.
        The worst thing that I have ever bought.
        It never worked, not once.
        Terrible, stay away from it.
        It broke at once and nobody helped.
        Absolutely useless.
        I want to warn everybody: do not buy this.
        Horrible from the first minute to the last.
        I hate everything about it.
        Dreadful quality, an insult.
        It made me furious.
    """),
    2: _lines("""
        It disappointed me.
        Rather poor for the price.
        It works, but only sometimes.
        I expected more.
        Weak and slow.
        Not what was promised.
        I would not buy it again.
        Too many small faults.
        It feels cheap.
        The idea is fine but the result is not.
        I was often annoyed by it.
        Below what others offer.
    """),
    3: _lines("""
        It is okay.
        Neither good nor bad.
        It does what it should, no more.
        Average in every way.
        Some things I like, some I do not.
        Acceptable for the price.
        Nothing special.
        It is fine for a while.
        I have seen better and worse.
        So-so.
        It is usable.
        I have mixed feelings.
    """),
    4: _lines("""
        A good buy.
        I like it a lot.
        It works well, with one small weakness.
        Solid quality.
        I am happy with it.
        Nearly everything is right.
        I would buy it again.
        Better than I thought.
        Nice to use.
        It does its job very well.
        Good value for the money.
        Pleasant, apart from the colour.
    """),
    5: _lines("""
        Simply perfect.
        The best that I have ever had.
        I love it more every day.
        Outstanding in every respect.
        I could not be happier.
        An absolute masterpiece.
        Fantastic, everybody should have one.
        It is beyond all praise.
        Flawless from the first day on.
        Wonderful, I am thrilled.
        Superb quality, superb service.
        I cannot find a single fault.
    """),
}

NUMBERS = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "a dozen": 12,
}
ITEMS = _lines("""
    tea
    honey
    rope
    soap
    flour
    candles
    nails
    paper
    rice
    coffee
    pencils
    towels
    lamps
    spoons
    blankets
    baskets
    buckets
    gloves
    mirrors
    pepper
""")
CITIES = _lines("""
    Oslo
    Porto
    Riga
    Turin
    Lyon
    Cork
    Bergen
    Graz
    Ghent
    Malmo
    Seville
    Krakow
""")
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ORDERS = _lines("""
    Could you send {count} packs of {item} to {city} by {day}?
    We need {count} packs of {item} in {city} on {day}.
    By {day} the shop in {city} wants {count} packs of {item}.
    Please have {item} brought to {city}, {count} packs, no later than {day}.
    {city} has run out of {item}: {count} packs until {day}, please.
    On {day} our people in {city} expect {item}, {count} packs of it.
    Ship {item} to the office in {city}. It should be {count} packs and there by {day}.
    For {day}, {count} packs of {item}; the address is in {city}.
    My sister in {city} would like {count} packs of {item}, if possible on {day}.
    The {item} for {city} must leave so that it is there on {day}: {count} packs.
    I order {count} packs of {item}. Deliver to {city}, {day} at the latest.
    Let {city} have {count} packs of {item} on {day}.
""")
