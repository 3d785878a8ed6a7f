"""Writes examples/demo.parquet: twelve short songs in six languages, two of them instrumental.

The two columns `mood` and `catalog_number` are not ours: they travel through to the catalog.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SONGS = [
    ("harbour-lights", "folk pop, acoustic guitar, warm female voice, 96 bpm", 16, "calm",
     "[verse]\nThe harbour lights are coming on\nThe ferry hums an evening song\n\n[chorus]\nHold the line, hold the light\nBring the little boats home tonight"),
    ("rain-on-vinyl", "lo-fi hip-hop, soft piano, vinyl crackle, rain, 75 bpm", 20, "calm", None),
    ("nordlicht", "synthpop, deutsch, klare Stimme, 120 bpm", 12, "bright",
     "[verse]\nÜber den Dächern beginnt es zu glühn\nGrün wie das Meer und so schnell wie der Wind\n\n[chorus]\nNordlicht, Nordlicht, bleib noch bei mir"),
    ("cafe-de-la-gare", "chanson, accordion, upright bass, male voice", 14, "wistful",
     "[verse]\nAu café de la gare on attend le matin\nUn croissant, deux cafés et la main dans la main\n\n[chorus]\nLe train part sans nous, tant mieux"),
    ("calle-abajo", "latin pop, nylon guitar, cajon, duet, 104 bpm", 12, "bright",
     "[verse]\nCalle abajo va la luna\nCon zapatos de cristal\n\n[chorus]\nBaila, baila, que la noche es larga"),
    ("lantern-street", "mandopop ballad, piano, strings", 15, "wistful",
     "[verse]\n长街灯火慢慢亮\n风把旧歌轻轻唱\n\n[chorus]\n你在远方我在路上"),
    ("first-train", "city pop, slap bass, electric piano, 110 bpm", 12, "bright",
     "[verse]\n始発の窓に朝が来る\n知らない町の名前を読む\n\n[chorus]\nもう少しだけこのままで"),
    ("iron-orchard", "industrial rock, distorted guitar, drum machine, 132 bpm", 10, "dark",
     "[verse]\nRust in the rows where the apples hung\nSparks on the wind and a hammer's tongue\n\n[chorus]\nTurn it up, tear it down"),
    ("tin-parade", "marching band, brass, snare drums, cheerful", 8, "bright", None),
    ("slow-elevator", "bossa nova, vibraphone, brushed drums, whispering voice", 18, "calm",
     "[verse]\nFloor by floor the city goes\nNobody's in a hurry\n\n[bridge]\nDoors open, doors close"),
    ("midnight-kitchen", "neo soul, rhodes, groove, alto voice, 82 bpm", 14, "calm",
     "[verse]\nSugar on the counter, radio low\nMidnight in the kitchen and nowhere to go\n\n[chorus]\nStir it slow, stir it slow"),
    ("eight-bit-dawn", "chiptune, square lead, fast arpeggio, 150 bpm", 6, "bright", None),
]  # fmt: skip


def main() -> None:
    """Write the manifest beside this file."""
    ids, prompts, durations, moods, lyrics = zip(*SONGS, strict=True)
    table = pa.table(
        {
            "id": ids,
            "prompt": prompts,
            "lyrics": lyrics,
            "duration": pa.array(durations, pa.float64()),
            "mood": moods,
            "catalog_number": pa.array(range(1001, 1001 + len(SONGS)), pa.int32()),
        }
    )
    pq.write_table(table, Path(__file__).parent / "demo.parquet")


if __name__ == "__main__":
    main()
