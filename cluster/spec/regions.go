package spec

import "strings"

// awsRegions is where AWS's regions are, to the nearest city: the defaults of a Region of that name.
var awsRegions = map[string]struct {
	city, country       string
	latitude, longitude float64
}{
	"af-south-1":     {"Cape Town", "ZA", -33.92, 18.42},
	"ap-east-1":      {"Hong Kong", "HK", 22.32, 114.17},
	"ap-east-2":      {"Taipei", "TW", 25.03, 121.57},
	"ap-northeast-1": {"Tokyo", "JP", 35.68, 139.69},
	"ap-northeast-2": {"Seoul", "KR", 37.57, 126.98},
	"ap-northeast-3": {"Osaka", "JP", 34.69, 135.50},
	"ap-south-1":     {"Mumbai", "IN", 19.08, 72.88},
	"ap-south-2":     {"Hyderabad", "IN", 17.39, 78.49},
	"ap-southeast-1": {"Singapore", "SG", 1.35, 103.82},
	"ap-southeast-2": {"Sydney", "AU", -33.87, 151.21},
	"ap-southeast-3": {"Jakarta", "ID", -6.21, 106.85},
	"ap-southeast-4": {"Melbourne", "AU", -37.81, 144.96},
	"ap-southeast-5": {"Kuala Lumpur", "MY", 3.14, 101.69},
	"ap-southeast-6": {"Auckland", "NZ", -36.85, 174.76},
	"ap-southeast-7": {"Bangkok", "TH", 13.76, 100.50},
	"ca-central-1":   {"Montreal", "CA", 45.50, -73.57},
	"ca-west-1":      {"Calgary", "CA", 51.05, -114.07},
	"cn-north-1":     {"Beijing", "CN", 39.90, 116.41},
	"cn-northwest-1": {"Zhongwei", "CN", 37.51, 105.20},
	"eu-central-1":   {"Frankfurt", "DE", 50.11, 8.68},
	"eu-central-2":   {"Zurich", "CH", 47.38, 8.54},
	"eu-north-1":     {"Stockholm", "SE", 59.33, 18.07},
	"eu-south-1":     {"Milan", "IT", 45.46, 9.19},
	"eu-south-2":     {"Zaragoza", "ES", 41.65, -0.88},
	"eu-west-1":      {"Dublin", "IE", 53.35, -6.26},
	"eu-west-2":      {"London", "GB", 51.51, -0.13},
	"eu-west-3":      {"Paris", "FR", 48.86, 2.35},
	"il-central-1":   {"Tel Aviv", "IL", 32.09, 34.78},
	"me-central-1":   {"Dubai", "AE", 25.20, 55.27},
	"me-south-1":     {"Manama", "BH", 26.23, 50.59},
	"mx-central-1":   {"Querétaro", "MX", 20.59, -100.39},
	"sa-east-1":      {"São Paulo", "BR", -23.55, -46.63},
	"us-east-1":      {"Ashburn", "US", 39.04, -77.49},
	"us-east-2":      {"Columbus", "US", 39.96, -83.00},
	"us-gov-east-1":  {"Columbus", "US", 39.96, -83.00},
	"us-gov-west-1":  {"Portland", "US", 45.52, -122.68},
	"us-west-1":      {"San Francisco", "US", 37.77, -122.42},
	"us-west-2":      {"Boardman", "US", 45.84, -119.70},
}

// isCountry says whether a code is one of ISO 3166-1 alpha-2, which are in capitals.
func isCountry(code string) bool {
	return len(code) == 2 && strings.Contains(countries, " "+code+" ")
}

const countries = " AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ" +
	" CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR" +
	" GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP" +
	" KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT" +
	" MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW" +
	" SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG" +
	" UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW "
