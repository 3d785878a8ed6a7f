"""Words that give a language in Latin script away even in a short line: data only."""

from __future__ import annotations

COMMON_WORDS = {
    "en": "i i'm i'll i've you you're your my me we our us he she they the and of to with this that it's is are was be "
    "been don't can't won't will would could should have has for from love heart hello night tonight never every "
    "when where what who how just know want need hold let's let come back away time world feel dancing girl boy",
    "de": "ich du er sie wir ihr mich mir dich dir uns mein meine meinen dein deine deinen und der die das den dem "
    "ein eine einen ist sind bin bist war nicht kein keine mit von für auf aus bei nach wie was wer wenn "
    "dass nur noch auch doch immer nie liebe herz nacht",
    "fr": "je j'ai j'aime t'aime tu il elle nous vous moi toi mon ma mes ton ta tes son ses le les un une des du "
    "et est c'est n'est suis es sont ne pas plus que qui qu'on où dans sur sous avec sans pour par au aux "
    "comme tout toute jamais toujours encore amour cœur nuit vie",
    "es": "yo tú él ella nosotros mi mis tu tus su sus el la los las un una unos y o pero que qué quién cómo cuando "
    "donde es eres soy está estás estoy no ni con sin por para del al de en se te me lo le como más siempre "
    "nunca quiero amo amor corazón noche vida baila bailar bailando beso",
    "it": "io tu lui lei noi voi mio mia miei tuo tua tuoi suo sua il lo la gli le un uno una e è sei sono ho hai ha "
    "non che chi cosa come quando dove perché con senza per del della dei nel nella sul sulla alla di da in "
    "mi ti si ci più mai sempre ancora amo amore cuore notte vita voglio questa questo solo",
    "pt": "eu tu você ele ela nós meu minha meus teu tua teus seu sua o a os as um uma uns e ou mas que quem como "
    "quando onde é és sou está estou não nem com sem por para do da dos das no na ao à de em se te me lhe "
    "mais sempre nunca quero amo amor coração noite vida até vou hoje saudade muito",
    "pl": "ja ty on ona my wy mnie mi cię ci tobie mój moja moje twój twoja twoje twoje i w we z ze na do od po za "
    "przez jest jestem jesteś są nie tak to co kto jak gdy gdzie kiedy że się już tylko zawsze nigdy bez dla "
    "kocham miłość serce noc życie",
    "tr": "ben sen o biz siz bana sana beni seni benim senin bizi sizi bu şu bir ve ile için gibi kadar değil var yok "
    "ne kim nasıl neden çok daha hep hiç her şimdi artık ama gel git bırak aşk aşkım kalbim gece",
    "cs": "já ty on ona my vy mě mi tě ti mně tobě můj moje tvůj tvoje tvá má a v ve z ze na do od po za přes je jsem "
    "jsi jsou není ne tak to co kdo jak když kde že se si už jen vždy nikdy bez pro miluju láska srdce noc život",
    "nl": "ik jij je hij zij ze wij we jullie mij me jou mijn jouw zijn haar ons onze de het een en van in op met "
    "voor naar uit bij te is ben bent was niet geen dat die wat wie hoe waar als maar nog ook altijd nooit "
    "hou liefde hart nacht leven vannacht",
    "hu": "én te ő mi ti ők engem téged nekem neked velem veled a az egy és vagy de hogy ha mert nem ne van vagyok "
    "vagy volt lesz mint csak már még is itt ott ki mit mi minden soha mindig szeretlek szerelem szív szívem éj",
}
"""The commonest words of each language, and those that its songs cannot do without."""
